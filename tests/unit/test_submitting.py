import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.job_folders import archive_bytes, fields, make_job, make_queue, names
from unified.errors import InvalidSubmission
from unified.queue.config import ServiceConfig
from unified.queue.errors import ConflictError, RefusedError
from unified.queue.limits import DiskFullError
from unified.queue.spool import scan
from unified.queue.submitting import submit_folder

ROOMY = ServiceConfig(min_free_bytes=0)


@pytest.fixture
def queue(tmp_path):
    root, store = make_queue(tmp_path / "root")
    yield root, store
    store.close()


def submit(queue, folder, config=ROOMY, **options):
    return submit_folder(*queue, folder, by="alice", config=config, **options)


def is_clean(root):
    return names(root.incoming) == [] and names(root.rejected) == []


def refused(queue, folder, **options):
    """Submit what must be refused; return the codes and fields of its problems."""
    with pytest.raises(InvalidSubmission) as caught:
        submit(queue, folder, **options)
    assert is_clean(queue[0])
    assert queue[1].jobs() == []
    return [(problem.code, problem.field) for problem in caught.value.problems]


def test_a_folder_becomes_a_job_and_is_left_as_it_was(queue, tmp_path):
    root, store = queue
    folder = make_job(tmp_path / "mine", files=("model.umodel", "train.pt", "notes/read.me"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    submitted = submit(queue, folder)
    assert submitted.is_new
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    spec = root.spec(submitted.job.id)
    for path in folder.rglob("*"):
        if path.is_file():
            assert (spec / path.relative_to(folder)).read_bytes() == path.read_bytes()
    assert [step.by for step in store.transitions(submitted.job.id)] == ["alice"]
    assert is_clean(root)


def test_submitting_again_answers_with_the_first_job(queue, tmp_path):
    folder = make_job(tmp_path / "mine")
    first, second = submit(queue, folder), submit(queue, folder)
    assert (first.is_new, second.is_new) == (True, False)
    assert first.job == second.job
    assert is_clean(queue[0])


def test_a_dropped_folder_and_a_submitted_one_are_one_job(queue, tmp_path):
    root, store = queue
    folder = make_job(tmp_path / "mine")
    submit(queue, folder)
    shutil.copytree(folder, root.incoming / "mine.job")
    assert [taken.outcome for taken in scan(root, store, ROOMY, now=time.time())] == ["duplicate"]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(order=st.permutations(sorted(fields())), indent=st.sampled_from([None, 1, 8]))
def test_how_job_json_is_laid_out_makes_no_other_job(queue, tmp_path, order, indent):
    folder = tmp_path / "mine"
    if not folder.exists():
        make_job(folder)
    (folder / "job.json").write_text(json.dumps({field: fields()[field] for field in order}, indent=indent))
    submit(queue, folder)
    assert len(queue[1].jobs()) == 1


@pytest.mark.parametrize("name", ["model.umodel", "train.pt", "read.me", "sub/read.me"])
def test_every_file_and_its_name_count(queue, tmp_path, name):
    folder = make_job(tmp_path / "mine", files=("model.umodel", "train.pt", "read.me", "sub/read.me"))
    first = submit(queue, folder).job.id
    (folder / name).write_bytes(archive_bytes("other"))
    second = submit(queue, folder).job.id
    (folder / "read.me").rename(folder / "read.you")
    assert len({first, second, submit(queue, folder).job.id}) == 3


def test_other_content_is_another_job_unless_the_id_is_given(queue, tmp_path):
    folder = make_job(tmp_path / "mine")
    named = make_job(tmp_path / "named", id="one")
    assert submit(queue, folder).job.id != submit(queue, folder, changes={"seed": 1}).job.id
    submit(queue, named)
    with pytest.raises(ConflictError, match="one"):
        submit(queue, named, changes={"seed": 1})
    assert is_clean(queue[0])
    assert len(queue[1].jobs()) == 3


def test_a_token_makes_two_jobs_of_one_folder_and_one_of_two_attempts(queue, tmp_path):
    folder = make_job(tmp_path / "mine")
    first, again, second = (submit(queue, folder, changes={"client_token": token}) for token in ("a", "a", "b"))
    assert first.job.id == again.job.id != second.job.id
    with pytest.raises(ConflictError, match="client_token"):
        submit(queue, folder, changes={"client_token": "a", "epochs": 9})


def test_user_and_changes_are_written_into_the_job(queue, tmp_path):
    root, _ = queue
    folder = make_job(tmp_path / "mine", user="mallory", priority=1)
    row = submit(queue, folder, user="alice", changes={"priority": 5, "weight": None}).job
    assert (row.user, row.priority, row.weight) == ("alice", 5, 1.0)
    assert json.loads((root.spec(row.id) / "job.json").read_text()) == row.spec
    assert row.spec == fields(user="alice", priority=5)
    assert json.loads((folder / "job.json").read_text())["user"] == "mallory"


def test_changes_are_checked_like_the_file(queue, tmp_path):
    folder = make_job(tmp_path / "mine")
    assert refused(queue, folder, changes={"priority": "high"}) == [("E-TYPE", "priority")]
    assert refused(queue, folder, changes={"prio": 3}) == [("E-FIELD", "prio")]


def test_data_beside_several_jobs_are_brought_along_and_kept_once(queue, tmp_path):
    root, store = queue
    (tmp_path / "batch" / "data").mkdir(parents=True)
    (tmp_path / "batch" / "data" / "train.pt").write_bytes(archive_bytes("shared"))
    for index in range(3):
        data = {"train": "../data/train.pt", "test": str(tmp_path / "batch" / "data" / "train.pt")}
        folder = make_job(tmp_path / "batch" / f"{index}", files=("model.umodel",), seed=index, data=data)
        submit(queue, folder)
    contents = [row.spec["data"] for row in store.jobs()]
    assert contents[0]["train"] == contents[0]["test"]
    assert contents[0]["train"].startswith("shared/train-")
    assert contents[0]["train"].endswith(".pt")
    files = [root.spec(row.id) / row.spec["data"]["train"] for row in store.jobs()]
    assert {file.read_bytes() for file in files} == {archive_bytes("shared")}
    assert len({file.stat().st_ino for file in files}) == 1
    assert len(names(root.files)) == 1
    assert files[0].stat().st_ino != (tmp_path / "batch" / "data" / "train.pt").stat().st_ino, "theirs to change"


def test_folders_are_brought_along_file_by_file(queue, tmp_path):
    root, _store = queue
    dataset = tmp_path / "set"
    (dataset / "train").mkdir(parents=True)
    (dataset / "train" / "data.arrow").write_bytes(b"rows")
    (tmp_path / "blob").write_text("{}")
    (dataset / "dataset_dict.json").symlink_to(tmp_path / "blob")
    folder = make_job(
        tmp_path / "mine",
        files=("model.umodel",),
        data={"train": "../set", "columns": {"inputs": "a", "targets": "b"}, "tokenizer": str(dataset)},
    )
    row = submit(queue, folder).job
    assert row.spec["data"]["train"] == row.spec["data"]["tokenizer"]
    brought = root.spec(row.id) / row.spec["data"]["train"]
    assert (brought / "train" / "data.arrow").read_bytes() == b"rows"
    assert (brought / "dataset_dict.json").read_text() == "{}"
    assert not any(path.is_symlink() for path in root.spec(row.id).rglob("*"))
    (dataset / "train" / "data.arrow").write_bytes(b"more rows")
    assert submit(queue, folder).is_new, "other data make another job"


def test_named_links_are_followed_and_others_refused(queue, tmp_path):
    root, _ = queue
    (tmp_path / "elsewhere").mkdir()
    for name in ("train.pt", "test.pt"):
        (tmp_path / "elsewhere" / name).write_bytes(archive_bytes(name))
    folder = make_job(tmp_path / "mine", files=("model.umodel",), data={"train": "train.pt", "test": "sets/test.pt"})
    (folder / "train.pt").symlink_to("../elsewhere/train.pt")
    (folder / "sets").symlink_to("../elsewhere")
    row = submit(queue, folder).job
    spec = root.spec(row.id)
    assert (spec / row.spec["data"]["train"]).read_bytes() == archive_bytes("train.pt")
    assert (spec / row.spec["data"]["test"]).read_bytes() == archive_bytes("test.pt")
    assert names(spec) == ["job.json", "model.umodel", "shared"]
    other = make_job(tmp_path / "other")
    (other / "extra").symlink_to("/etc")
    with pytest.raises(InvalidSubmission, match="symbolic link"):
        submit(queue, other)


def test_a_path_back_into_the_folder_is_taken_for_what_it_is(queue, tmp_path):
    folder = make_job(tmp_path / "mine", data={"train": "../mine/train.pt"}, model="./model.umodel")
    assert submit(queue, folder).is_new


def test_what_was_submitted_can_be_submitted_elsewhere(queue, tmp_path):
    (tmp_path / "train.pt").write_bytes(archive_bytes())
    folder = make_job(tmp_path / "mine", files=("model.umodel",), data={"train": "../train.pt"})
    row = submit(queue, folder).job
    other = make_queue(tmp_path / "other")
    assert submit(other, queue[0].spec(row.id)).job.content_sha256 == row.content_sha256
    other[1].close()


def test_everything_wrong_is_told_at_once(queue, tmp_path):
    folder = make_job(tmp_path / "mine", files=(), data={"train": "../nothing.pt", "test": "gone.pt"})
    assert refused(queue, folder) == [("E-FILE", "data.train")]
    folder = make_job(tmp_path / "more", files=(), data={"train": "train.pt", "test": "gone.pt"})
    assert refused(queue, folder) == [("E-FILE", "model"), ("E-FILE", "data.train"), ("E-FILE", "data.test")]
    folder = make_job(tmp_path / "third", epochs=0, loss=3)
    assert sorted(field for _, field in refused(queue, folder)) == ["epochs", "loss"]


@pytest.mark.parametrize(
    "make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")], ids=range(3)
)
def test_what_is_no_job_folder_is_refused(queue, tmp_path, make):
    make(tmp_path / "mine")
    [(code, _)] = refused(queue, tmp_path / "mine")
    assert code in {"E-FOLDER", "E-FILE"}


def test_limits_refuse_and_keep_nothing(queue, tmp_path):
    folder = make_job(tmp_path / "mine", user="alice")
    for limit in ({"max_job_bytes": 10}, {"max_archive_files": 1}, {"max_bytes_per_user": 10}, {"max_total_bytes": 10}):
        with pytest.raises(RefusedError, match=next(iter(limit))):
            submit(queue, folder, ServiceConfig(min_free_bytes=0, **limit))
    with pytest.raises(DiskFullError, match="min_free_bytes"):
        submit(queue, folder, ServiceConfig(min_free_bytes=1 << 60))
    assert is_clean(queue[0])
    one = ServiceConfig(min_free_bytes=0, max_jobs_per_user=1)
    assert submit(queue, folder, one).is_new
    assert not submit(queue, folder, one).is_new
    with pytest.raises(RefusedError, match="alice"):
        submit(queue, folder, one, changes={"seed": 1})
    assert submit(queue, folder, one, user="bob").is_new


@pytest.mark.parametrize("name", ["ENOSPC", "EIO", "EROFS"])
@pytest.mark.parametrize("point", ["submit.payload-written", "submit.payload-synced"])
def test_a_disk_that_fails_refuses_and_keeps_nothing(queue, tmp_path, point, name):
    folder = make_job(tmp_path / "mine")
    code = f"""
from pathlib import Path
from tests.unit.job_folders import AT_ONCE
from unified.queue.root import Root
from unified.queue.store import JobStore
from unified.queue.submitting import submit_folder
from unified.queue.limits import DiskFullError
root = Root.open({str(queue[0].path)!r})
try:
    submit_folder(root, JobStore.open(root.database), Path({str(folder)!r}), by="alice", config=AT_ONCE)
except DiskFullError as error:
    print("refused", error)
"""
    environment = os.environ | {"UNIFIED_FAULT": f"{point}:{name}"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert said.stdout.startswith("refused"), said.stderr
    assert is_clean(queue[0])
    assert queue[1].jobs() == []
    assert submit(queue, folder).is_new


def test_the_roots_own_settings_are_the_default(queue, tmp_path):
    queue[0].config.write_text("max_job_bytes = 1\n")
    with pytest.raises(RefusedError, match="max_job_bytes"):
        submit_folder(*queue, make_job(tmp_path / "mine"), by="alice")
