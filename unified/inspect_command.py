"""What ``unified inspect`` does: says what a job folder holds, or everything that is wrong with it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unified.admission import DatasetRef, Submission
from unified.engine import Engine
from unified.errors import InvalidSubmission, Problem
from unified.listeners import json_line
from unified.messages import Inspected
from unified.run_command import EXIT_DONE, EXIT_ERROR, check_folders
from unified.summary import finite
from unified.tables import submission_table
from unified.terminal import line_writer, make_console, show


def inspect(folder: Path, *, trust: bool, as_json: bool) -> int:
    """Print what ``folder`` holds and return the exit code.

    Raises:
        InvalidSubmission: With everything that is wrong with it; with ``as_json`` it is printed instead.
    """
    found = _inspected(folder, trust=trust)
    if as_json:
        line_writer(sys.stdout)(json_line(finite(_to_json(found))))
        return EXIT_ERROR if found.problems else EXIT_DONE
    if found.submission is not None:
        show(make_console(), submission_table(found.submission, found.step_seconds))
    if found.problems:
        raise InvalidSubmission(found.problems)
    return EXIT_DONE


def _inspected(folder: Path, *, trust: bool) -> Inspected:
    try:
        check_folders([folder])
        with Engine(trust=trust) as engine:
            return engine.inspect_folder(folder)
    except InvalidSubmission as error:
        return Inspected(folder=folder, submission=None, problems=error.problems, step_seconds=None)


def _to_json(found: Inspected) -> dict[str, Any]:
    submission = found.submission
    job = {} if submission is None else _submission_to_json(submission) | {"step_seconds": found.step_seconds}
    return {"folder": str(found.folder), **job, "problems": [_problem_to_json(p) for p in found.problems]}


def _submission_to_json(submission: Submission) -> dict[str, Any]:
    return {
        "name": submission.name,
        "user": submission.spec.user,
        "model": {
            "file": submission.model.path.name,
            "form": submission.model.form,
            "sha256": submission.model.sha256,
        },
        "train": _dataset_to_json(submission.train),
        "test": _dataset_to_json(submission.test) if submission.test else None,
        "num_epochs": submission.num_epochs,
        "num_steps": submission.num_steps,
        "batch_size": submission.spec.batch_size,
        "estimate": asdict(submission.estimate),
    }


def _dataset_to_json(dataset: DatasetRef) -> dict[str, Any]:
    return asdict(dataset) | {"path": str(dataset.path)}


def _problem_to_json(problem: Problem) -> dict[str, str]:
    return asdict(problem)
