"""What ``unified run --fuse`` does when the jobs are done: fuses those that finished and take the same input."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from unified.errors import InvalidSubmission, UnifiedError
from unified.fusing.fuse_command import FuseOptions, fuse_and_show
from unified.fusing.gathering import groups_of
from unified.fusing.naming import fused_name
from unified.fusing.sources import FinishedJob, named_apart, read_result, result_folders
from unified.run_command import EXIT_DONE
from unified.terminal import line_writer


@dataclass(frozen=True, slots=True, kw_only=True)
class JourneyOptions:
    """What ``unified run`` was told of fusing.

    Attributes:
        run: Folder of the run's results; what is fused goes to ``fused`` in it, of several groups to ``fused-1``, ….
        command: The command line, to say how to go on.
    """

    run: Path
    thresholds: tuple[float, ...]
    budget_seconds: float | None
    candidates: int | None
    device: str
    threads: int | None
    trust: bool
    resume: bool
    as_json: bool
    command: tuple[str, ...]


def fuse_run(options: JourneyOptions) -> int:
    """Fuse what a run has trained, a network for each kind of input, and return the exit code.

    Raises:
        InvalidSubmission: If a result is damaged.
        UnifiedError: If models cannot be fused.
    """
    say = line_writer(sys.stderr if options.as_json else sys.stdout)
    groups = groups_of(named_apart(_results(options.run)))
    fused = [group for group in groups if len(group) > 1]
    for group in groups:
        if len(group) == 1:
            say(f"{group[0].name} is not fused: no other finished job takes the same input")
    problems: list[str] = []
    for number, group in enumerate(fused, start=1):
        name = fused_name(number, of=len(fused))
        say(f"fusing {', '.join(job.name for job in group)} into {options.run / name}")
        try:
            code = fuse_and_show(group, _fuse_options(options, group, options.run / name))
        except (InvalidSubmission, UnifiedError) as error:
            problems += str(error).splitlines()  # the other groups go on
            continue
        if code != EXIT_DONE:
            return code
    if problems:
        raise UnifiedError("\n".join(problems))
    return EXIT_DONE


def _results(run: Path) -> list[FinishedJob]:
    """Return the run's finished jobs that have a model; none if all of them failed."""
    try:
        return [read_result(folder) for folder in result_folders(run)]
    except InvalidSubmission:
        if any(run.glob("*/result.json")):
            raise
        return []


def _fuse_options(options: JourneyOptions, group: list[FinishedJob], out: Path) -> FuseOptions:
    return replace(
        FuseOptions(results=tuple(job.folder for job in group), out=out),
        thresholds=options.thresholds,
        budget_seconds=options.budget_seconds,
        candidates=options.candidates,
        device=options.device,
        threads=options.threads,
        trust=options.trust,
        resume=options.resume,
        as_json=options.as_json,
        command=options.command,
    )
