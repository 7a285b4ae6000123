"""T2 and T6, the half of submitting: processes killed at every point of it, and several at work at once."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.unit.job_folders import AT_ONCE, archive_bytes, make_job, make_queue, names, zip_folder
from unified.job_state import JobState
from unified.queue.faults import CRASH_POINTS
from unified.queue.spool import finish_interrupted, scan
from unified.queue.store import JobStore

TIMES = {"store.before-commit": 2, "store.committed": 2}  #: so that it is killed at each of the first few commits

SUBMITTING = [point for point in CRASH_POINTS if point.startswith("submit.")]
INGESTING = [point for point in CRASH_POINTS if point.startswith(("ingest.", "store."))]


def drop_ready(root, source):
    shutil.copytree(source, root.incoming / ".tmp-copy")
    (root.incoming / ".tmp-copy").rename(root.incoming / "mine.job")


def drop_folder(root, source):
    shutil.copytree(source, root.incoming / "mine")


def drop_zip(root, source):
    zip_folder(source, root.incoming / "mine.zip")


def drop_lone(root, source):
    shutil.copy(source / "job.json", root.incoming / "mine.json")


DROPS = {"ready": drop_ready, "folder": drop_folder, "zip": drop_zip, "lone": drop_lone}

CASES = [
    *((way, point) for way in ("submit", "zip") for point in SUBMITTING + INGESTING),
    *(("ready", point) for point in INGESTING),
    # the same code by another door
    *((way, "ingest.committed") for way in ("submit-zip", "lone", "folder")),
    *((way, "submit.renamed") for way in ("submit-zip", "lone")),
]


@pytest.fixture
def queue(tmp_path):
    root, store = make_queue(tmp_path / "root")
    yield root, store
    store.close()


def spooling(verb, root, *paths, fault=""):
    environment = os.environ | {"UNIFIED_FAULT": fault}
    command = [sys.executable, "-m", "tests.faults.spooling", verb, str(root.path), *map(str, paths)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def killed_at(point, verb, root, *paths):
    """Run a process that is killed at a point; return what it had promised by then, None if it never got there."""
    process = spooling(verb, root, *paths, fault=f"{point}:kill")
    said, complaint = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), complaint
    return said if process.returncode else None


def make_source(tmp_path, root):
    """A job folder; its data are beside it and in the queue's own data folder."""
    for folder in (root.data, tmp_path / "data"):
        folder.mkdir(exist_ok=True)
        for name in ("train.pt", "m.umodel"):
            (folder / name).write_bytes(archive_bytes(name))
    return make_job(tmp_path / "mine", files=("notes.txt",), model="../data/m.umodel", data={"train": "../data/train.pt"})


def check_nothing_is_partial(root, source):
    """Whatever can be seen is whole, whoever looks and whenever."""
    for entry in root.incoming.iterdir():
        if entry.name.endswith(".job"):
            check_whole(entry, source)
    for spec in root.path.glob("jobs/*/spec"):
        check_whole(spec, source)
    assert names(root.rejected) == []


def check_whole(folder, source):
    job = json.loads((folder / "job.json").read_text())
    for given in (job["model"], job["data"]["train"]):
        if not given.startswith("../"):
            assert (folder / given).read_bytes() == archive_bytes("m.umodel" if "umodel" in given else "train.pt")
    if (folder / "notes.txt").exists():
        assert (folder / "notes.txt").read_bytes() == (source / "notes.txt").read_bytes()


def check_one_job(queue, source):
    root, store = queue
    [row] = store.jobs()
    assert row.state is JobState.QUEUED
    assert [step.new for step in store.transitions(row.id)] == [JobState.QUEUED]
    assert names(root.path / "jobs") == [row.id]
    assert "job.json" in names(root.spec(row.id))
    check_nothing_is_partial(root, source)
    assert [name for name in names(root.incoming) if not name.startswith(".")] == []
    return row.id


def restart(queue):
    finish_interrupted(*queue)
    return [seen.outcome for seen in scan(*queue, AT_ONCE, now=time.time())]


@pytest.mark.parametrize(("way", "point"), CASES)
def test_a_process_killed_anywhere_leaves_one_job_or_none(queue, tmp_path, way, point):
    root, store = queue
    source = make_source(tmp_path, root)
    for time_of_kill in range(1, TIMES.get(point, 1) + 1):
        is_dropped = way in DROPS
        if is_dropped:
            DROPS[way](root, source)
            promised = killed_at(f"{point}@{time_of_kill}", "scan", root)
        else:
            path = source if way == "submit" else zip_folder(source, tmp_path / "mine.zip")
            promised = killed_at(f"{point}@{time_of_kill}", "submit", root, path)
        assert promised is not None or point in TIMES, f"{way} never reached {point}"
        check_nothing_is_partial(root, source)
        was_durable = is_dropped or store.jobs() != [] or any(name.endswith(".job") for name in names(root.incoming))
        assert was_durable == (is_dropped or point not in SUBMITTING[:2])
        outcomes = restart(queue)
        assert "rejected" not in outcomes
        assert "delayed" not in outcomes
        if was_durable:
            check_one_job(queue, source)
        else:
            assert store.jobs() == []
    if not is_dropped:  # whoever got no answer asks again
        said, complaint = spooling("submit", root, path).communicate()
        assert said.split() == [check_one_job(queue, source), str(not was_durable)], complaint


@pytest.mark.parametrize("second", ["ingest.before-commit", "ingest.committed", "store.before-commit"])
@pytest.mark.parametrize("first", ["submit.renamed", "ingest.committed"])
def test_a_process_killed_while_it_makes_up_for_another(queue, tmp_path, first, second):
    root, _ = queue
    source = make_source(tmp_path, root)
    assert killed_at(first, "submit", root, source) == ""
    killed_at(second, "scan", root)
    check_nothing_is_partial(root, source)
    restart(queue)
    check_one_job(queue, source)


def test_a_full_disk_while_ingesting_loses_nothing(queue, tmp_path):
    root, _ = queue
    source = make_source(tmp_path, root)
    for point in INGESTING:
        shutil.rmtree(root.incoming / "mine.job", ignore_errors=True)
        drop_ready(root, source)
        said, complaint = spooling("scan", root, fault=f"{point}:ENOSPC").communicate()
        assert complaint == ""
        assert "rejected" not in said
        restart(queue)
        check_one_job(queue, source)


def test_several_submitters_and_ingesters_share_one_queue_while_some_are_killed(queue, tmp_path):
    root, store = queue
    chance = random.Random(1)
    batches = [[make_job(tmp_path / f"{name}-{i}", name=f"{name}-{i}") for i in range(12)] for name in "abc"]
    ingesters = [spooling("serve", root) for _ in range(3)]
    submitters = [spooling("submit", root, *batch) for batch in batches]
    for index in range(12):
        make_job(tmp_path / f"d-{index}", name=f"d-{index}").rename(root.incoming / f"d-{index}.job")
        zip_folder(batches[0][index], root.incoming / f"again-{index}.zip")
        if index % 4 == 0:
            (root.incoming / f"bad-{index}.job").mkdir()
        if index in (3, 7):
            victim = chance.choice(ingesters)
            ingesters.remove(victim)
            victim.kill()
            victim.communicate()
            ingesters.append(spooling("serve", root))
        time.sleep(0.05)
    submitters[chance.randrange(3)].kill()
    answers = [line.split() for process in submitters for line in process.communicate()[0].splitlines()]
    assert all(is_new == "True" for job, is_new in answers if not job.startswith("a-")), "those of a were dropped, too"
    promised = [job for job, _ in answers]
    wait_until_taken(root)
    (root.path / "enough").touch()
    for process in ingesters:
        said, complaint = process.communicate()
        assert process.returncode == 0, complaint
        assert "delayed" not in said, said
    restart(queue)
    rows = store.jobs()
    assert {row.id for row in rows} >= set(promised)
    assert {row.name for row in rows} >= {f"{name}-{index}" for name in "ad" for index in range(12)}
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert len(store.transitions(row.id)) == 1
        assert names(root.spec(row.id)) == ["job.json", "model.umodel", "train.pt"]
    assert names(root.rejected) == ["bad-0", "bad-4", "bad-8"]
    assert names(root.path / "jobs") == sorted(row.id for row in rows)


def wait_until_taken(root):
    while any(not name.startswith(".") for name in names(root.incoming)):
        time.sleep(0.02)


def test_a_copy_that_goes_on_while_it_is_looked_at_is_taken_whole(queue, tmp_path):
    root, store = queue
    root.config.write_text("settle_seconds = 0.05\npatience_seconds = 60\nmin_free_bytes = 0\n")
    ingester = spooling("serve", root)
    assert ingester.stdout.readline() == "ready\n"
    source = make_job(tmp_path / "mine", files=("sub/notes.txt", "train.pt", "model.umodel"))
    zip_folder(source, tmp_path / "mine.zip")
    for name in ("sub/notes.txt", "job.json", "train.pt", "model.umodel"):
        copy_slowly(source / name, root.incoming / "mine" / name)
    copy_slowly(tmp_path / "mine.zip", root.incoming / "mine.zip")
    wait_until_taken(root)
    (root.path / "enough").touch()
    ingester.communicate()
    [row] = store.jobs()
    for file in (file for file in source.rglob("*") if file.is_file()):
        assert (root.spec(row.id) / file.relative_to(source)).read_bytes() == file.read_bytes()
    assert names(root.rejected) == []


def copy_slowly(source, target):
    """Copy in pieces, between which it looks as if nothing more would come."""
    content = source.read_bytes()
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb", buffering=0) as file:
        for start in range(0, len(content), max(len(content) // 3, 1)):
            file.write(content[start : start + max(len(content) // 3, 1)])
            time.sleep(0.1)


def test_a_store_opened_by_many_at_once_is_one_store(tmp_path):
    root, store = make_queue(tmp_path / "root")
    store.close()
    sources = [make_job(tmp_path / f"j{index}", name=f"j{index}") for index in range(4)]
    processes = [spooling("submit", root, source) for source in sources]
    assert all(process.communicate()[1] == "" for process in processes)
    again = JobStore.open(root.database)
    assert sorted(row.name for row in again.jobs()) == ["j0", "j1", "j2", "j3"]
    again.close()


def test_the_table_of_points_is_the_one_that_is_tested():
    ours = {point for point in CRASH_POINTS if point.split(".")[0] in ("submit", "ingest", "store")}
    assert {point for way, point in CASES if way == "submit"} == ours
