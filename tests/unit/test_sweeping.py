"""Sweeps handed in to a queue: through every way in the same jobs, all or none, each once, and their files kept once."""

import json
import time

import pytest

from tests.unit.http_service import FILES, JOB, local_client, sha256, zipped
from tests.unit.job_folders import AT_ONCE, fields, make_job, make_queue, names, zip_folder
from unified.errors import InvalidSubmission, UnifiedError
from unified.job import JobSpec
from unified.queue.config import ServiceConfig
from unified.queue.errors import ConflictError, RefusedError
from unified.queue.job_folder import named_sources
from unified.queue.spool import scan
from unified.queue.submitting import submit_folder
from unified.queue.sweeping import submit_all
from unified.service.client import Client

SWEEP = {"optimizer.lr": [0.1, 0.01], "lr_scheduler": [None, "ConstantLR"], "seed": [0]}
NAMES = [member.name for member in JobSpec.parse(fields(sweep=SWEEP), asks_torch=False).members()]


@pytest.fixture
def queue(tmp_path):
    root, store = make_queue(tmp_path / "root")
    yield root, store
    store.close()


def handed_in(queue, path, config=AT_ONCE, **options):
    return submit_all(*queue, path, by="alice", config=config, **options)


def dropped(queue, config=AT_ONCE):
    return scan(*queue, config, now=time.time() + 1.0)


def by_folder(queue, source):
    return [submitted.job for submitted in handed_in(queue, source)]


def by_zip(queue, source):
    return [submitted.job for submitted in handed_in(queue, zip_folder(source, source.parent / "mine.zip"))]


def by_ready_folder(queue, source):
    source.rename(queue[0].incoming / "mine.job")
    return [taken.job for taken in dropped(queue)]


def by_copied_folder(queue, source):
    source.rename(queue[0].incoming / "mine")
    return [taken.job for taken in dropped(queue)]


def by_dropped_zip(queue, source):
    zip_folder(source, queue[0].incoming / "mine.zip")
    return [taken.job for taken in dropped(queue)]


WAYS = [by_folder, by_zip, by_ready_folder, by_copied_folder, by_dropped_zip]


@pytest.mark.parametrize("way", WAYS)
def test_every_member_becomes_the_job_that_it_would_be_by_itself(way, queue, tmp_path):
    root, store = queue
    source = make_job(tmp_path / "mine", user="ann", priority=3, sweep=SWEEP)
    rows = way(queue, source)
    assert [row.name for row in rows] == NAMES
    assert store.jobs() == rows
    assert names(root.incoming) == names(root.rejected) == []
    for row, member in zip(rows, JobSpec.parse(fields(sweep=SWEEP), asks_torch=False).members(), strict=True):
        spec = JobSpec.parse(json.loads((root.spec(row.id) / "job.json").read_text()), asks_torch=False)
        assert (row.user, row.priority, spec.sweep) == ("ann", 3, None)
        assert spec.from_sweep == member.from_sweep
        assert spec.fingerprint() == member.fingerprint()
        assert row.spec == json.loads((root.spec(row.id) / "job.json").read_text())
        assert set(named_sources(spec).values()) == {
            str(path.relative_to(root.spec(row.id))) for path in root.spec(row.id).rglob("shared/*")
        }
        assert row.id.startswith(f"{row.name}-")
    kept = {path.stat().st_ino for row in rows for path in root.spec(row.id).rglob("shared/*")}
    assert len(kept) == len(FILES), "the members' files are links to the same ones"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("again", WAYS)
def test_handing_a_sweep_in_again_is_handing_it_in_once(way, again, queue, tmp_path):
    first = way(queue, make_job(tmp_path / "one" / "mine", sweep=SWEEP))
    second = again(queue, make_job(tmp_path / "two" / "mine", sweep=SWEEP))
    assert [row.id for row in second] == [row.id for row in first]
    assert queue[1].jobs() == first
    assert names(queue[0].incoming) == []


def test_over_http_the_members_are_the_same_jobs(queue, tmp_path):
    from tests.unit.http_service import served

    root, store = queue
    source = make_job(tmp_path / "mine", sweep=SWEEP)
    with served(root.path) as (_, url), Client(url) as client:
        ids = client.submit_folders(source)
    assert [row.id for row in store.jobs()] == ids
    with Client(root.path) as client:
        assert client.submit_folders(source) == ids
    assert [store.get(job).name for job in ids] == NAMES


def test_a_sweep_made_in_python_is_handed_in_by_submit_all(queue):
    import torch

    data = {"train": (torch.randn(32, 4), torch.zeros(32).long())}
    job = JobSpec(
        name="tiny", model=torch.nn.Linear(4, 2), data=data, loss="CrossEntropyLoss", optimizer="SGD", epochs=1, batch_size=8,
        sweep={"optimizer.lr": [0.1, 0.2]},
    )  # fmt: skip
    with Client(queue[0].path) as client:
        with pytest.raises(UnifiedError, match=r"sweep of 2 jobs.*submit_all"):
            client.submit(job)
        ids = client.submit_all([job])
        assert client.submit_all([job]) == ids
    assert [queue[1].get(job).spec["optimizer"]["lr"] for job in ids] == [0.1, 0.2]


def test_a_json_alone_may_hold_a_sweep_of_the_operators_data(queue):
    root, store = queue
    source = make_job(root.path / "source")
    for name in FILES:
        (source / name).rename(root.data / name)
    data = {"train": "../data/train.pt"}
    (root.incoming / "mine.json").write_text(json.dumps(fields(model="../data/model.umodel", data=data, sweep=SWEEP)))
    assert [taken.outcome for taken in dropped(queue)] == ["accepted"] * 4
    assert [row.name for row in store.jobs()] == NAMES


def test_changes_are_made_in_every_member(queue, tmp_path):
    source = make_job(tmp_path / "mine", sweep=SWEEP)
    rows = [submitted.job for submitted in handed_in(queue, source, user="bob", changes={"priority": 7, "client_token": "t"})]
    assert {(row.user, row.priority) for row in rows} == {("bob", 7)}
    assert [row.client_token for row in rows] == [f"t/00{index}" for index in range(4)]
    again = handed_in(queue, source, user="bob", changes={"priority": 7, "client_token": "t"})
    assert [(submitted.job.id, submitted.is_new) for submitted in again] == [(row.id, False) for row in rows]
    with pytest.raises(ConflictError):
        handed_in(queue, source, user="bob", changes={"priority": 8, "client_token": "t"})


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"sweep": {"seed": [0, -1]}}, "E-VALUE"),
        ({"sweep": {"sed": [0]}}, "E-FIELD"),
        ({"model": "other"}, "E-FILE"),
        ({"id": "x"}, "E-VALUE"),
    ],
)
@pytest.mark.parametrize("way", ["folder", "zip", "ready"])
def test_if_one_member_is_wrong_none_is_taken_in(way, change, code, queue, tmp_path):
    root, store = queue
    source = make_job(tmp_path / "mine", **{"sweep": SWEEP} | change)
    if way == "ready":
        source.rename(root.incoming / "mine.job")
        [taken] = dropped(queue)
        problems = taken.problems
    else:
        with pytest.raises(InvalidSubmission) as caught:
            handed_in(queue, source if way == "folder" else zip_folder(source, tmp_path / "mine.zip"))
        problems = caught.value.problems
    assert [(problem.code, problem.job) for problem in problems] == [(code, "tiny")]
    assert store.jobs() == []
    assert names(root.incoming) == []


def test_a_dropped_sweep_reads_no_file_outside_its_folder(queue, tmp_path):
    root, store = queue
    source = make_job(tmp_path / "mine", sweep=SWEEP)
    (source / "train.pt").rename(tmp_path / "secret.pt")
    (source / "train.pt").symlink_to(tmp_path / "secret.pt")
    source.rename(root.incoming / "mine.job")
    [taken] = dropped(queue)
    assert [problem.code for problem in taken.problems] == ["E-LINK"]
    assert store.jobs() == []


def test_a_limit_refuses_all_members_or_none(queue, tmp_path):
    source = make_job(tmp_path / "mine", sweep=SWEEP)
    with pytest.raises(RefusedError, match="4 more"):
        handed_in(queue, source, config=ServiceConfig(min_free_bytes=0, max_jobs_per_user=3))
    assert queue[1].jobs() == []
    assert names(queue[0].incoming) == []
    enough = ServiceConfig(min_free_bytes=0, max_jobs_per_user=4)
    assert len(handed_in(queue, source, config=enough)) == 4
    assert len(handed_in(queue, source, config=enough)) == 4, "those that are there take no new place"


def test_where_one_job_is_asked_for_a_sweep_is_refused(queue, tmp_path):
    root, store = queue
    with pytest.raises(InvalidSubmission) as caught:
        submit_folder(*queue, make_job(tmp_path / "mine", sweep=SWEEP), by="alice", config=AT_ONCE)
    assert [problem.code for problem in caught.value.problems] == ["E-SWEEP"]
    with local_client(root.path) as client:
        answers = [client.post("/v1/jobs", content=zipped(JOB | {"sweep": SWEEP}), headers={"Content-Type": "application/zip"})]
        for content in FILES.values():
            client.put(f"/v1/uploads/{sha256(content)}", content=content)
        files = {name: sha256(content) for name, content in FILES.items()}
        answers.append(client.post("/v1/jobs", json={"job": JOB | {"sweep": SWEEP}, "files": files}))
    for answer in answers:
        assert answer.status_code == 422
        (problem,) = answer.json()["problems"]
        assert problem["code"] == "E-SWEEP"
        assert "unified.Client" in problem["remedy"]
    assert store.jobs() == []
    assert names(root.incoming) == []
