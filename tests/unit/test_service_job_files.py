"""Logs, metrics and dead letters of queued jobs: what is in the files after flushes, kills, full disks and resumes."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified.job_state import JobState
from unified.queue.records import JobRow
from unified.queue.root import Root
from unified.service import line_files
from unified.service.job_files import LOG_TAIL_LINES, DeathDetails, JobFiles
from unified.service.line_files import LineFiles

MOMENT = 1795329000.0  # 2026-11-22T06:30:00Z


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = Root.make(tmp_path / "root")
    root.job("a").mkdir()
    return root


@pytest.fixture
def files(root: Root) -> JobFiles:
    return JobFiles(root, wall=lambda: MOMENT)


def rows(root: Root, job: str = "a") -> list[dict]:
    return [json.loads(line) for line in root.metrics(job).read_text().splitlines()]


def job_row(**changes) -> JobRow:
    nothing: dict[str, Any] = dict.fromkeys(JobRow.__dataclass_fields__)
    known: dict[str, Any] = {
        "id": "a",
        "name": "digits",
        "user": "ann",
        "spec": {"name": "digits"},
        "state": JobState.DEAD,
        "num_job_failures": 3,
    }
    return JobRow(**nothing | known | changes)


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let writes beyond ``num_bytes`` of a file fail, as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_log_line_is_a_stamp_and_a_text_and_further_lines_stand_below_it(root: Root, files: JobFiles) -> None:
    files.log("a", "started on slot 0")
    files.log("a", "failed:\n  ValueError\n")
    files.flush()
    assert root.log("a").read_text() == (
        "2026-11-22T06:30:00Z  started on slot 0\n2026-11-22T06:30:00Z  failed:\n" + " " * 22 + "  ValueError\n"
    )


def test_nothing_in_a_log_can_steer_a_terminal(root: Root, files: JobFiles) -> None:
    files.log("a", "name \x1b[2J\rgone\x9b \udc80 but äöü and \t stay")
    files.flush()
    lines = root.log("a").read_bytes().decode().splitlines()
    assert [line[22:] for line in lines] == ["name \\x1b[2J", "gone\\x9b \\udc80 but äöü and \t stay"]


def test_a_row_of_metrics_gets_a_time_and_null_for_what_is_not_finite(root: Root, files: JobFiles) -> None:
    files.metric("a", {"step": 5, "loss": float("nan"), "metrics": {"accuracy": 0.5, "mse": float("inf")}})
    files.metric("a", {"time": 1.5, "step": 6, "company": ("b", "c")})
    files.flush()
    assert rows(root) == [
        {"time": MOMENT, "step": 5, "loss": None, "metrics": {"accuracy": 0.5, "mse": None}},
        {"time": 1.5, "step": 6, "company": ["b", "c"]},
    ]


def test_nothing_is_written_before_a_flush_and_nothing_of_a_job_that_was_dropped(root: Root, files: JobFiles) -> None:
    files.log("a", "stale")
    files.metric("a", {"step": 1})
    assert not root.log("a").exists()
    files.drop("a")
    files.close("a")
    assert not root.log("a").exists()
    assert not root.metrics("a").exists()


def test_lines_for_a_job_whose_folder_is_gone_are_let_go(root: Root, files: JobFiles) -> None:
    files.log("forgotten", "late")
    files.log("a", "fine")
    files.flush()
    assert not root.job("forgotten").exists()
    assert root.log("a").exists()


def test_truncating_drops_later_steps_and_keeps_the_log(root: Root, files: JobFiles) -> None:
    for step in range(6):
        files.metric("a", {"step": step, "split": "train"})
    files.log("a", "resumes from step 3")
    files.truncate("a", 3)
    files.metric("a", {"step": 4, "split": "train"})
    files.close("a")
    assert [row["step"] for row in rows(root)] == [0, 1, 2, 3, 4]
    assert "resumes" in root.log("a").read_text()


def test_truncating_finds_later_steps_wherever_a_late_writer_left_them(root: Root, files: JobFiles) -> None:
    root.metrics("a").write_text('{"step": 1}\n{"step": 9}\nnot json\n[]\n{"step": 2}\n{"step": 1')
    files.truncate("a", 2)
    assert [row["step"] for row in rows(root)] == [1, 2]


def test_truncating_what_was_never_written_does_nothing(root: Root, files: JobFiles) -> None:
    files.truncate("a", 0)
    assert not root.metrics("a").exists()


@given(steps=st.lists(st.integers(0, 20), max_size=12), cut=st.integers(0, 20))
def test_truncating_keeps_exactly_the_rows_up_to_the_step_in_order(tmp_path_factory, steps: list[int], cut: int) -> None:
    root = Root.make(tmp_path_factory.mktemp("root"))
    root.job("a").mkdir()
    files = JobFiles(root)
    for step in steps:
        files.metric("a", {"step": step})
    files.truncate("a", cut)
    assert [row["step"] for row in rows(root)] == [step for step in steps if step <= cut] if steps else True


@given(torn=st.binary(min_size=1, max_size=9000).filter(lambda torn: b"\n" not in torn), whole=st.booleans())
def test_a_line_that_a_killed_writer_began_is_cut_off_before_the_next(tmp_path_factory, torn: bytes, whole: bool) -> None:
    path = tmp_path_factory.mktemp("log") / "log.txt"
    before = b"whole\n" if whole else b""
    path.write_bytes(before + torn)
    lines = LineFiles()
    lines.append(path, "next")
    lines.flush()
    assert path.read_bytes() == before + b"next\n"


def test_a_writer_that_is_killed_leaves_whole_lines_in_order(root: Root) -> None:
    code = (
        "import sys; from unified.queue.root import Root; from unified.service.job_files import JobFiles\n"
        "files = JobFiles(Root(path=__import__('pathlib').Path(sys.argv[1])))\n"
        "for step in range(10**9):\n"
        "    files.metric('a', {'step': step, 'loss': 0.5, 'metrics': {'accuracy': 1 / (step + 1)}})\n"
        "    if step % 7 == 0: files.flush()\n"
        "    if step == 700: print('ready', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(root.path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
    files = JobFiles(root)
    files.metric("a", {"step": -1})
    files.flush()
    steps = [row["step"] for row in rows(root)]
    assert steps == [*range(len(steps) - 1), -1]
    assert len(steps) > 700


def test_what_finds_no_room_waits_and_is_written_once_there_is_some(root: Root, files: JobFiles, caplog) -> None:
    files.log("a", "first")
    files.flush()
    size = root.log("a").stat().st_size
    with largest_file(size + 10):
        files.log("a", "second")
        files.flush()
        files.flush()
        assert root.log("a").stat().st_size == size
    files.log("a", "third")
    files.flush()
    assert [line[22:] for line in root.log("a").read_text().splitlines()] == ["first", "second", "third"]
    assert sum("cannot be written" in record.getMessage() for record in caplog.records) == 1


def test_what_waits_for_room_is_bounded_and_the_newest_stays(root: Root, monkeypatch) -> None:
    monkeypatch.setattr(line_files, "MAX_PENDING_BYTES", 100)
    path, lines = root.log("a"), LineFiles()
    with largest_file(0):
        for number in range(50):
            lines.append(path, f"line {number:04d}")
            lines.flush()
    lines.flush()
    assert path.read_text().splitlines() == [f"line {number:04d}" for number in range(40, 50)]


def test_threads_that_write_and_flush_at_once_lose_no_line_and_mix_none(root: Root, files: JobFiles) -> None:
    def write(name: int) -> None:
        for number in range(200):
            files.metric("a", {"step": number, "thread": name})
            if number % 10 == name:
                files.flush()

    threads = [threading.Thread(target=write, args=[name]) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files.flush()
    for name in range(4):
        assert [row["step"] for row in rows(root) if row["thread"] == name] == list(range(200))


def test_no_descriptor_stays_open(root: Root, files: JobFiles) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(50):
        root.job(f"job-{number}").mkdir()
        files.log(f"job-{number}", "text")
    files.flush()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_dead_letter_tells_what_was_known(root: Root, files: JobFiles) -> None:
    for number in range(LOG_TAIL_LINES + 5):
        files.log("a", f"line {number}")
    details = DeathDetails(
        traceback="Traceback…\nValueError\n", exit="killed by SIGSEGV", slot=1, neighbours=("b",), checkpoint="x"
    )
    folder = files.write_dead_letter(job_row(), "quarantined", details)
    assert folder == root.dead("a")
    letter = json.loads((folder / "reason.json").read_text())
    assert letter["reason"] == "quarantined"
    assert (letter["exit"], letter["slot"], letter["neighbours"], letter["checkpoint"]) == ("killed by SIGSEGV", 1, ["b"], "x")
    assert (letter["user"], letter["num_job_failures"]) == ("ann", 3)
    assert {"python", "torch"} <= letter["versions"].keys()
    assert (folder / "traceback.txt").read_text() == details.traceback
    assert json.loads((folder / "job.json").read_text()) == {"name": "digits"}
    tail = (folder / "log.txt").read_text().splitlines()
    assert (len(tail), tail[-1][22:]) == (LOG_TAIL_LINES, f"line {LOG_TAIL_LINES + 4}")


def test_a_second_death_replaces_the_letter_of_the_first(root: Root, files: JobFiles) -> None:
    files.write_dead_letter(job_row(), "first", DeathDetails(traceback="long ago"))
    folder = files.write_dead_letter(job_row(), "second", DeathDetails())
    assert json.loads((folder / "reason.json").read_text())["reason"] == "second"
    assert (folder / "traceback.txt").read_text() == ""
    assert sorted(path.name for path in folder.iterdir()) == ["job.json", "log.txt", "reason.json", "traceback.txt"]
