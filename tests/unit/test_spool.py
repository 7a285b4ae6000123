import json
import logging
import os
import shutil
import time

import pytest

from tests.unit.job_folders import AT_ONCE, archive_bytes, fields, make_job, make_queue, names, zip_folder
from unified.job_state import JobState
from unified.queue.config import ServiceConfig
from unified.queue.errors import UnknownJobError
from unified.queue.ingesting import Spool, commit, prepare
from unified.queue.root import Root
from unified.queue.shared_files import dropped_sources
from unified.queue.spool import finish_interrupted, scan
from unified.queue.store import JobStore

SLOWLY = ServiceConfig(settle_seconds=2, patience_seconds=30, min_free_bytes=0)


@pytest.fixture
def queue(tmp_path):
    root, store = make_queue(tmp_path / "root")
    yield root, store
    store.close()


def scanned(queue, config=AT_ONCE, later=1.0):
    """Scan as if ``later`` seconds from now."""
    return scan(*queue, config, now=time.time() + later)


def visible(root):
    return sorted(name for name in names(root.incoming) if not name.startswith("."))


def reason_of(root, name):
    return json.loads((root.rejected / name / "reason.json").read_text())


def test_a_folder_renamed_in_becomes_a_job_at_once(queue, tmp_path):
    root, store = queue
    make_job(tmp_path / "mine", user="alice", priority=3, weight=2.0, max_retries=5).rename(root.incoming / "mine.job")
    [taken] = scanned(queue, SLOWLY, later=0)
    row = store.get(taken.job.id)
    assert taken.outcome == "accepted"
    assert row.state is JobState.QUEUED
    assert (row.name, row.user, row.priority, row.weight, row.max_retries) == ("tiny", "alice", 3, 2.0, 5)
    assert row.spec == fields(user="alice", priority=3, weight=2.0, max_retries=5)
    assert names(root.spec(row.id)) == ["job.json", "model.umodel", "train.pt"]
    assert row.num_bytes == sum(file.stat().st_size for file in root.spec(row.id).iterdir())
    assert visible(root) == []
    assert [step.by for step in store.transitions(row.id)] == ["spool"]


def test_an_id_comes_from_the_job_or_from_its_name_and_content(queue, tmp_path):
    root, store = queue
    make_job(root.incoming / "a.job", id="mine-1", name="a")
    make_job(root.incoming / "b.job", name="b")
    first, second = (taken.job.id for taken in scanned(queue))
    assert first == "mine-1"
    assert second == f"b-{store.get(second).content_sha256[:10]}"


def test_a_folder_copied_in_is_taken_once_it_is_quiet(queue):
    root, store = queue
    make_job(root.incoming / "mine")
    assert scanned(queue, SLOWLY, later=1) == []
    assert visible(root) == ["mine"]
    [taken] = scanned(queue, SLOWLY, later=3)
    assert taken.outcome == "accepted"
    assert store.get(taken.job.id).state is JobState.QUEUED


def test_a_folder_that_is_copied_slowly_is_never_taken_before_it_is_whole(queue, tmp_path):
    root, store = queue
    source = make_job(
        tmp_path / "mine", files=("model.umodel", "data/train.safetensors"), data={"train": "data/train.safetensors"}
    )
    tensors = json.dumps({"inputs": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (source / "data" / "train.safetensors").write_bytes(len(tensors).to_bytes(8, "little") + tensors + b"12345678")
    target = root.incoming / "mine"
    for file in ("job.json", "model.umodel", "data/train.safetensors"):
        content = (source / file).read_bytes()
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        for end in sorted({0, 1, 9, len(content) // 2, len(content) - 1}):
            (target / file).write_bytes(content[:end])
            assert scanned(queue, SLOWLY, later=10) == [], "it has been quiet for 10 s, and is not whole"
        (target / file).write_bytes(content)
    [taken] = scanned(queue, SLOWLY, later=10)
    assert (taken.outcome, len(store.jobs())) == ("accepted", 1)


def test_what_does_not_become_whole_is_rejected_in_the_end(queue):
    root, _ = queue
    make_job(root.incoming / "mine", files=("model.umodel",))
    assert scanned(queue, SLOWLY, later=29) == []
    [taken] = scanned(queue, SLOWLY, later=31)
    assert (taken.outcome, taken.folder) == ("rejected", root.rejected / "mine")
    assert visible(root) == []
    assert [(problem.code, problem.field) for problem in taken.problems] == [("E-FILE", "data.train")]


@pytest.mark.parametrize("prefix", ["", "mine/"])
def test_a_zip_is_taken_once_it_is_whole(queue, tmp_path, prefix):
    root, store = queue
    whole = zip_folder(make_job(tmp_path / "mine"), tmp_path / "mine.zip", prefix).read_bytes()
    (root.incoming / "mine.zip").write_bytes(whole[: len(whole) // 2])
    assert scanned(queue, SLOWLY, later=10) == []
    (root.incoming / "mine.zip").write_bytes(whole)
    [taken] = scanned(queue, SLOWLY, later=10)
    assert taken.outcome == "accepted"
    assert names(root.spec(taken.job.id)) == ["job.json", "model.umodel", "train.pt"]
    assert visible(root) == []
    assert len(store.jobs()) == 1


def test_a_folder_and_a_zip_of_it_are_one_job(queue, tmp_path):
    root, store = queue
    source = make_job(tmp_path / "mine")
    zip_folder(source, root.incoming / "b.zip")
    shutil.copytree(source, root.incoming / "a")
    assert [taken.outcome for taken in scanned(queue)] == ["accepted", "duplicate"]
    assert len(store.jobs()) == 1
    assert visible(root) == []


def test_dropping_a_job_again_changes_nothing(queue, tmp_path):
    root, store = queue
    source = make_job(tmp_path / "mine")
    for _ in range(3):
        shutil.copytree(source, root.incoming / "mine.job")
        [taken] = scanned(queue)
    assert taken.outcome == "duplicate"
    assert len(store.transitions(taken.job.id)) == 1
    assert names(root.rejected) == []


@pytest.mark.parametrize("given", [{"id": "one"}, {"client_token": "word"}])
def test_another_job_under_the_same_id_or_token_is_rejected(queue, given):
    root, store = queue
    make_job(root.incoming / "a.job", **given)
    make_job(root.incoming / "b.job", epochs=2, **given)
    first, second = scanned(queue)
    assert (first.outcome, second.outcome) == ("accepted", "rejected")
    assert reason_of(root, "b")["problems"][0]["code"] == "E-CONFLICT"
    assert len(store.jobs()) == 1


def test_jobs_of_two_users_are_two_jobs(queue):
    root, store = queue
    for user in ("alice", "bob"):
        make_job(root.incoming / f"{user}.job", user=user)
    assert [taken.outcome for taken in scanned(queue)] == ["accepted"] * 2
    assert sorted(row.user for row in store.jobs()) == ["alice", "bob"]


def test_dropped_jobs_may_name_the_operators_data_which_they_share(queue):
    root, store = queue
    (root.data / "set").mkdir()
    (root.data / "train.pt").write_bytes(archive_bytes())
    (root.data / "set" / "state.json").write_text("{}")
    for index in range(3):
        data = {"train": "../data/train.pt", "test": "../data/set"}
        make_job(root.incoming / f"{index}.job", files=("model.umodel",), seed=index, data=data)
    specs = [root.spec(taken.job.id) for taken in scanned(queue)]
    contents = [json.loads((spec / "job.json").read_text())["data"] for spec in specs]
    assert all(content == contents[0] for content in contents)
    files = [(spec / contents[0]["train"]).stat() for spec in specs]
    assert {status.st_ino for status in files} == {files[0].st_ino}
    assert files[0].st_nlink == 4, "three jobs and files/ share one"
    assert (specs[0] / contents[0]["test"] / "state.json").read_text() == "{}"
    (root.data / "train.pt").write_bytes(b"changed by the operator")
    assert (specs[0] / contents[0]["train"]).read_bytes() == archive_bytes()
    assert store.jobs()[0].spec["data"] == contents[0]


def test_a_job_json_alone_may_name_the_operators_data_only(queue):
    root, _store = queue
    (root.data / "m.umodel").write_bytes(archive_bytes())
    (root.data / "train.pt").write_bytes(archive_bytes())
    good = fields(model="../data/m.umodel", data={"train": "../data/train.pt"})
    (root.incoming / "good.json").write_text(json.dumps(good))
    (root.incoming / "lacks.json").write_text(json.dumps(fields()))
    assert [taken.outcome for taken in scanned(queue)] == ["accepted", "rejected"]
    assert [problem["field"] for problem in reason_of(root, "lacks")["problems"]] == ["model", "data.train"]
    assert visible(root) == []


def test_paths_that_lead_out_are_refused_all_at_once(queue, tmp_path):
    root, _ = queue
    (tmp_path / "secret").write_text("x")
    (root.data / "link").symlink_to(tmp_path / "secret")
    for number, path in enumerate(
        [str(tmp_path / "secret"), "../secret", "../../../etc/passwd", "../data/link", "..", "../data/../x"]
    ):
        make_job(root.incoming / f"{number}.job", data={"train": path, "test": path}, model=path)
    for taken in scanned(queue):
        assert [problem.field for problem in taken.problems] == ["model", "data.train", "data.test"]
        assert {problem.code for problem in taken.problems} == {"E-PATH"}


def test_the_operator_may_allow_other_folders(queue, tmp_path):
    root, _store = queue
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "train.pt").write_bytes(archive_bytes())
    make_job(root.incoming / "a.job", data={"train": str(tmp_path / "sets" / "train.pt")})
    [taken] = scanned(queue, AT_ONCE.model_copy(update={"data_roots": (tmp_path / "sets",)}))
    assert taken.outcome == "accepted"


def test_a_reason_is_for_people_and_for_programs(queue):
    root, _ = queue
    make_job(root.incoming / "mine.job", epochs=-1, loss=..., files=())
    [taken] = scanned(queue)
    reason = reason_of(root, "mine")
    assert reason["schema"] == 1
    assert reason["entry"] == "mine.job"
    assert {(problem["code"], problem["field"]) for problem in reason["problems"]} == {
        ("E-VALUE", "epochs"),
        ("E-MISSING", "loss"),
    }
    text = (root.rejected / "mine" / "reason.txt").read_text()
    assert " epochs: expected" in text
    assert "What to do:" in text
    assert (root.rejected / "mine" / "mine.job" / "job.json").is_file()
    assert "mine" in taken.text


def test_two_rejected_entries_of_one_name_are_both_kept(queue):
    root, _ = queue
    for _ in range(3):
        (root.incoming / "mine.job").mkdir()
        scanned(queue)
    assert names(root.rejected) == ["mine", "mine-2", "mine-3"]
    assert all(reason_of(root, name)["problems"] for name in names(root.rejected))


def test_limits_reject_and_a_full_disk_waits(queue):
    root, _store = queue
    for name in "abc":
        make_job(root.incoming / f"{name}.job", name=name, user="alice")
    full = AT_ONCE.model_copy(update={"min_free_bytes": 1 << 60})
    assert [taken.outcome for taken in scanned(queue, full)] == ["delayed"] * 3
    assert visible(root) == ["a.job", "b.job", "c.job"]
    tight = AT_ONCE.model_copy(update={"max_jobs_per_user": 2})
    assert [taken.outcome for taken in scanned(queue, tight)] == ["accepted", "accepted", "rejected"]
    assert reason_of(root, "c")["problems"][0]["code"] == "E-LIMIT"


@pytest.mark.parametrize(
    "limit", [{"max_job_bytes": 10}, {"max_archive_files": 2}, {"max_bytes_per_user": 10}, {"max_total_bytes": 10}]
)
def test_each_limit_is_kept(queue, limit):
    root, store = queue
    make_job(root.incoming / "a.job")
    [taken] = scanned(queue, AT_ONCE.model_copy(update=limit))
    assert (taken.outcome, taken.problems[0].code) == ("rejected", "E-LIMIT")
    assert store.jobs() == []


def test_a_job_that_is_there_already_is_not_refused_by_a_limit(queue, tmp_path):
    root, _ = queue
    source = make_job(tmp_path / "mine", user="alice")
    tight = AT_ONCE.model_copy(update={"max_jobs_per_user": 1})
    for expected in ("accepted", "duplicate"):
        shutil.copytree(source, root.incoming / "a.job")
        assert [taken.outcome for taken in scanned(queue, tight)] == [expected]


def test_hidden_and_unfinished_names_are_left_alone(queue):
    root, _ = queue
    for name in (".tmp-1", ".hidden.job", "a.zip.part", "b.filepart", "c~"):
        (root.incoming / name).mkdir()
    assert scanned(queue) == []
    assert len(names(root.incoming)) == 5


def test_a_row_without_its_files_gets_them_from_incoming(queue, tmp_path):
    root, store = queue
    entry = make_job(root.incoming / "a.job")
    spool = Spool(root=root, store=store, config=AT_ONCE)
    new = prepare(spool, entry, "a", dropped_sources(root, AT_ONCE))
    store.submit(new, by="spool")  # and here it is killed
    finish_interrupted(root, store)
    assert (root.spec(new.id) / "job.json").is_file()
    assert visible(root) == []
    assert store.get(new.id).state is JobState.QUEUED


def test_a_row_whose_files_are_gone_fails_and_says_so(queue):
    root, store = queue
    entry = make_job(root.incoming / "a.job")
    spool = Spool(root=root, store=store, config=AT_ONCE)
    new = prepare(spool, entry, "a", dropped_sources(root, AT_ONCE))
    store.submit(new, by="spool")
    shutil.rmtree(entry)
    make_job(root.incoming / "other.job", epochs=7)
    finish_interrupted(root, store)
    row = store.get(new.id)
    assert row.state is JobState.FAILED
    assert row.reason.startswith("spec-missing")
    assert [taken.outcome for taken in scanned(queue)] == ["accepted"]


def test_the_second_of_two_ingesters_finds_the_work_done(queue, tmp_path):
    root, store = queue
    spool = Spool(root=root, store=store, config=AT_ONCE)
    entry = make_job(root.incoming / "a.job")
    new = prepare(spool, entry, "a", dropped_sources(root, AT_ONCE))
    assert commit(spool, entry, new, by="spool").is_new
    assert not commit(spool, entry, new, by="spool").is_new
    with pytest.raises(FileNotFoundError):
        prepare(spool, entry, "a", dropped_sources(root, AT_ONCE))


def test_a_broken_store_keeps_everything_where_it_is(queue, tmp_path):
    root, store = queue
    make_job(root.incoming / "a.job")
    shutil.rmtree(root.path / "jobs")
    (root.path / "jobs").write_text("not a folder")
    [taken] = scanned(queue)
    assert taken.outcome == "delayed"
    assert visible(root) == ["a.job"]
    (root.path / "jobs").unlink()
    (root.path / "jobs").mkdir()
    finish_interrupted(root, store)
    assert len([row for row in store.jobs() if root.spec(row.id).is_dir()]) == 1


def test_only_so_many_are_taken_at_once(queue):
    root, store = queue
    for name in "abcde":
        make_job(root.incoming / f"{name}.job", name=name)
    assert len(scan(root, store, AT_ONCE, now=time.time(), limit=2)) == 2
    assert len(scan(root, store, AT_ONCE, now=time.time(), limit=99)) == 3
    assert scan(root, store, AT_ONCE, now=time.time()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_taken_all_the_same(queue):
    root, _ = queue
    make_job(root.incoming / "a.job").chmod(0o500)
    assert [taken.outcome for taken in scanned(queue)] == ["accepted"]


def test_no_job_of_that_name_before_anything_was_dropped(queue):
    with pytest.raises(UnknownJobError):
        queue[1].get("tiny")


def test_rejections_are_logged(queue, caplog):
    (queue[0].incoming / "a.job").mkdir()
    with caplog.at_level(logging.WARNING):
        scanned(queue)
    assert "rejected" in caplog.text


def test_a_root_may_be_opened_again(queue):
    root, _store = queue
    make_job(root.incoming / "a.job")
    [taken] = scanned(queue)
    again = JobStore.open(Root.open(root.path).database)
    assert again.get(taken.job.id).content_sha256 == taken.job.content_sha256
    again.close()
