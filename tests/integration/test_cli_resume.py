"""A run of the command line that is cut off, and taken up again: as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
import random
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.integration.batches import alone, describe, make_model, write_folder
from tests.integration.command_line import (
    assert_all_end,
    assert_equals,
    family,
    lines_until,
    start_unified,
    unified_command,
    write_data,
)

LONG = {"conv": {"epochs": 250}, "mlp": {"epochs": 250}}


@pytest.fixture(scope="module")
def long_jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two jobs of some seconds, with a checkpoint every few steps."""
    root = write_data(tmp_path_factory.mktemp("long") / "jobs")
    for name, changes in LONG.items():
        job = describe(name, **changes, checkpoint={"every_steps": 9})
        write_folder(root / name, make_model(name), job)
    return root


@pytest.fixture(scope="module")
def long_references() -> dict[str, tuple[dict[str, Tensor], list[dict[str, float]]]]:
    return {name: alone(name, **changes) for name, changes in LONG.items()}


LONG_OPTIONS = ["--slots", 1, "--threads", 1, "--scheduler", "round-robin:quantum=20", "--json"]


def has_trained(job: str) -> Callable[[dict[str, Any]], bool]:
    return lambda line: line["event"] == "EpochDone" and line["job"] == job


def first_steps(told: list[dict[str, Any]]) -> dict[str, int]:
    """Return the step at which each job was first heard of in training."""
    seen: dict[str, int] = {}
    for line in told:
        if line["event"] in {"StepsDone", "EpochDone"}:
            seen.setdefault(line["job"], line["step"])
    return seen


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
def test_ctrl_c_says_how_to_go_on_and_going_on_leaves_no_trace(stop_signal, long_jobs, long_references, tmp_path):
    out = tmp_path / "out"
    process = start_unified("run", long_jobs, "--out", out, *LONG_OPTIONS)
    lines_until(process, has_trained("mlp"))  # the second to begin
    children = family(process)
    process.send_signal(stop_signal)
    _, errors = process.communicate()
    assert process.returncode == 130
    (line,) = errors.splitlines()
    assert line.startswith("unified: interrupted; checkpoints are written, go on with: unified run ")
    assert_all_end(children)
    saved = {path.parent.name for path in (out / ".state" / "checkpoints").glob("*/*-*.json")}
    assert saved == set(LONG)
    assert (out / "timeline.png").is_file()

    program, *arguments = shlex.split(line.partition("go on with: ")[2])
    assert program == "unified"
    done = unified_command(*arguments)
    assert done.returncode == 0, done.stderr
    told = [json.loads(text) for text in done.stdout.splitlines()]
    assert min(first_steps(told).values()) > 1
    for name, expected in long_references.items():
        assert_equals(out / name, *expected)


#: What a run has to say before it is killed, and the longest time from then on in seconds.
KILLS = [
    (lambda line: line["event"] == "JobSubmitted", 0.0),
    (has_trained("conv"), 0.1),
    (has_trained("conv"), 0.3),
    (has_trained("mlp"), 0.3),
]


def test_a_run_killed_again_and_again_ends_as_if_nothing_had_happened(long_jobs, long_references, tmp_path):
    """SIGKILL to the parent alone, before training and at random times of it; what it started must end by itself."""
    out, moments = tmp_path / "out", random.Random(0)
    for is_time, most_seconds in KILLS:
        process = start_unified("run", long_jobs, "--out", out, *LONG_OPTIONS, "--resume")
        lines_until(process, is_time)
        children = family(process)
        time.sleep(moments.uniform(0.0, most_seconds))
        assert process.poll() is None, "it was done before it could be killed: make the jobs longer"
        process.kill()
        process.communicate()
        assert_all_end(children)
    done = unified_command("run", long_jobs, "--out", out, *LONG_OPTIONS, "--resume")
    assert done.returncode == 0, done.stderr
    assert max(first_steps([json.loads(line) for line in done.stdout.splitlines()]).values()) > 9
    for name, expected in long_references.items():
        assert_equals(out / name, *expected)
