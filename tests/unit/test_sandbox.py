"""The operating-system ring, drawn around real processes: what they can no longer do, and what they still can."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit import confined as act
from tests.unit.confined import Inside, confined
from tests.unit.dataset_cases import WRITERS
from tests.unit.old_kernel import refuse_landlock
from unified import sandbox
from unified.errors import SandboxError
from unified.nursery import Nursery
from unified.sandbox.folders import system_paths, worker_confinement

MISSING = sandbox.describe(tuple(part for part in sandbox.available() if not part.is_available))
needs_ring = pytest.mark.skipif(bool(MISSING), reason=f"here processes are {MISSING}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to read, one to write, and one that is nobody's business."""
    place = tmp_path_factory.mktemp("place")
    for name in ("job", "results", "others"):
        (place / name).mkdir()
        (place / name / "file").write_text(name)
    return place


@pytest.fixture(scope="module")
def inside(nursery: Nursery, place: Path) -> Iterator[Inside]:
    confinement = sandbox.Confinement(mode="required", readable=(place / "job",), writable=(place / "results",))
    with confined(nursery, confinement) as inside:
        yield inside


@needs_ring
def test_only_what_was_named_is_read(inside: Inside, place: Path) -> None:
    assert inside(act.read, place / "job" / "file") == "job"
    assert inside(act.listed, place / "job") == ["file"]
    for refused in (place / "others" / "file", Path("/etc/shadow"), Path(f"/proc/{os.getpid()}/environ")):
        with pytest.raises(PermissionError):
            inside(act.read, refused)
    for folder in (place, place / "others", Path.home(), Path("/tmp"), Path("/dev/shm")):
        with pytest.raises(PermissionError):
            inside(act.listed, folder)


@needs_ring
def test_only_results_are_written_and_nothing_that_misleads(inside: Inside, place: Path) -> None:
    target = place / "results" / "written"
    assert inside(act.write, target) == target.stat().st_size
    inside(os.replace, target, place / "results" / "renamed")
    inside(os.unlink, place / "results" / "renamed")
    job = place / "job" / "file"
    for attempt in (
        (act.write, job),
        (act.write, place / "job" / "another"),
        (os.truncate, job, 0),
        (os.unlink, job),
        (os.replace, job, place / "results" / "stolen"),
        (os.chmod, job, 0o777),
        (os.utime, job, (0, 0)),
        (act.make_link, place / "results" / "link", Path("/etc")),
        (act.make_fifo, place / "results" / "fifo"),
    ):
        with pytest.raises(PermissionError):
            inside(*attempt)
    with pytest.raises(OSError, match="cross-device"):
        inside(os.link, job, place / "results" / "linked")
    assert job.read_text() == "job"


@needs_ring
def test_temporary_files_go_to_the_results(inside: Inside, place: Path) -> None:
    assert Path(inside(act.temporary_file)).parent == place / "results"


@needs_ring
def test_nobody_is_reached_over_the_network(inside: Inside) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with pytest.raises(PermissionError):
                inside(act.connect, kind, listener.getsockname())
        with pytest.raises(BlockingIOError):
            listener.accept()
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, socket.AF_PACKET):
        with pytest.raises(PermissionError):
            inside(act.make_socket, family)
    assert inside(act.make_pair, socket.SOCK_STREAM) == b"x"
    with pytest.raises(PermissionError):
        inside(act.make_pair, socket.SOCK_DGRAM)


@needs_ring
def test_no_program_is_run_and_no_other_process_touched(inside: Inside) -> None:
    with pytest.raises(PermissionError):
        inside(act.run_program)
    for pid in (os.getpid(), 0, -1):
        with pytest.raises(PermissionError):
            inside(act.end, pid)
    assert inside(act.signal_itself)


@needs_ring
def test_the_ring_never_widens(nursery: Nursery, place: Path) -> None:
    confinement = sandbox.Confinement(mode="required", readable=(place / "job",))
    with confined(nursery, confinement) as inside, pytest.raises(PermissionError):
        inside(act.confine_again_for, place / "others" / "file")


@needs_ring
@pytest.mark.parametrize("num_threads", [1, 2])
def test_training_with_threads_and_files_goes_on_inside(inside: Inside, place: Path, num_threads: int) -> None:
    assert inside(act.train, place / "results", num_threads)
    assert inside(act.count_threads) == 3
    assert inside(act.tell_memory) > 0


@needs_ring
def test_transformers_and_tokenizers_work_inside(inside: Inside) -> None:
    assert inside(act.run_transformer) == [1, 3, 8]
    assert inside(act.tokenize, ["a", "b"] * 500) == 1000


@needs_ring
def test_tables_are_read_inside(nursery: Nursery, tmp_path: Path) -> None:
    job, cache = tmp_path / "job", tmp_path / "cache"
    job.mkdir()
    for name, write in WRITERS.items():
        write(job / name)
    with confined(nursery, sandbox.reading_confinement([job], cache, mode="required")) as inside:
        for name in WRITERS:
            assert inside(act.read_table, job / name, cache) == 4


@needs_ring
def test_the_network_may_be_left_open(nursery: Nursery) -> None:
    confinement = sandbox.Confinement(mode="required", network=True)
    with confined(nursery, confinement) as inside, socket.create_server(("127.0.0.1", 0)) as listener:
        inside(act.connect, socket.SOCK_STREAM, listener.getsockname())
        with pytest.raises(PermissionError):
            inside(act.run_program)


@needs_ring
def test_a_system_without_landlock_is_told_from_one_with_it(nursery: Nursery, place: Path) -> None:
    with confined(nursery, sandbox.Confinement(mode="off")) as inside:
        assert inside(act.read, place / "others" / "file") == "others"
        inside(refuse_landlock)
        landlock, seccomp = inside(sandbox.available)
        assert not landlock.is_available
        assert "not implemented" in landlock.detail
        assert seccomp.is_available
        with pytest.raises(SandboxError, match="lacks landlock, which keeps jobs from the files of others"):
            inside(sandbox.check, "required")
        inside(sandbox.check, "auto")
        with pytest.raises(SandboxError, match="lacks landlock"):
            inside(sandbox.confine, sandbox.Confinement(mode="required"))


@needs_ring
def test_auto_takes_what_there_is(nursery: Nursery, place: Path) -> None:
    with confined(nursery, sandbox.Confinement(mode="off")) as inside:
        inside(refuse_landlock)
        assert [part.name for part in inside(sandbox.confine, sandbox.Confinement(mode="auto"))] == ["seccomp"]
        assert inside(act.read, place / "others" / "file") == "others"
        with pytest.raises(PermissionError):
            inside(act.make_socket, socket.AF_INET)


def test_modules_are_read_from_where_somebody_chose_to_have_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, started = tmp_path / "modules", tmp_path / "started"
    started.mkdir()
    monkeypatch.chdir(started)
    monkeypatch.setattr(sys, "path", [str(started), "", "zip", str(chosen), str(Path.home()), "/", *sys.path])
    found = system_paths()
    assert chosen in found
    assert not {started, Path.home(), Path("/")} & set(found)
    assert Path(sandbox.__file__).parents[1] in found


def test_workers_of_gpus_are_confined_only_on_demand() -> None:
    places = [Path("/jobs")], [Path("/results")]
    assert worker_confinement(*places, ["cpu"], mode="off") is None
    assert worker_confinement(*places, ["cuda:0"], mode="auto") is None
    on_cpu = worker_confinement(*places, ["cpu"], mode="auto")
    on_gpu = worker_confinement(*places, ["cuda:0"], mode="required")
    assert on_cpu is not None
    assert on_gpu is not None
    assert on_cpu.readable == (Path("/jobs"),)
    assert set(on_cpu.readable) < set(on_gpu.readable)
    assert on_cpu.writable == on_gpu.writable == (Path("/results"),)


@pytest.mark.gpu
@needs_ring
def test_a_gpu_trains_inside(tmp_path: Path) -> None:
    confinement = worker_confinement([], [tmp_path], ["cuda:0"], mode="required")
    assert confinement is not None
    nursery = Nursery()
    with contextlib.closing(nursery), confined(nursery, confinement) as inside:
        assert inside(act.train_on_gpu) > 0
