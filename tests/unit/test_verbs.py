import json
import shutil
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.queue_cases import HOLDER, WAYS, S, Supervisor, bring, job_folder, submitted
from unified.errors import InvalidSubmission, UnifiedError
from unified.job_state import ENDED, LEGAL_MOVES, RESIDENT
from unified.queue.errors import AmbiguousIdError, ConflictError, RootError, UnknownJobError
from unified.queue.records import CheckpointRow
from unified.queue.verbs import Queue

VERBS = ("pause", "resume", "cancel", "checkpoint", "requeue")

#: What each verb does to a job in each state, without a supervisor: the state after it, "ask" or None: impossible.
EXPECTED = {
    "pause": {S.QUEUED: S.PAUSED, S.RETRY_WAIT: S.PAUSED, S.PAUSED: S.PAUSED}
    | dict.fromkeys((S.LOADING, S.RUNNING, S.PAUSING), "ask"),
    "resume": {S.PAUSED: S.QUEUED, S.PAUSING: "ask"}
    | {state: state for state in (S.QUEUED, S.LOADING, S.RUNNING, S.RETRY_WAIT)},
    "cancel": dict.fromkeys((S.QUEUED, S.RETRY_WAIT, S.PAUSED, S.CANCELLED), S.CANCELLED)
    | dict.fromkeys((S.LOADING, S.RUNNING, S.PAUSING, S.CANCELLING), "ask"),
    "checkpoint": dict.fromkeys((S.LOADING, S.RUNNING, S.PAUSING), "ask"),
    "requeue": dict.fromkeys((S.FAILED, S.DEAD, S.CANCELLED), S.QUEUED)
    | {state: state for state in (S.QUEUED, S.LOADING, S.RUNNING, S.RETRY_WAIT)},
}


@pytest.fixture
def queue(tmp_path):
    with Queue.open(tmp_path / "root", make=True) as queue:
        yield queue


def with_checkpoint(queue, job, *, step=7):
    row = queue.store.get(job)
    path = queue.root.checkpoints(job) / f"{row.epoch}-{step}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"state")
    saved = CheckpointRow(
        job=job, epoch=row.epoch, step=step, path=queue.root.relative(path), sha256="0" * 64, num_bytes=5, time=time.time()
    )
    queue.store.add_checkpoint(saved, holder=HOLDER)
    return path


def test_a_folder_that_is_no_queue_is_refused(tmp_path):
    with pytest.raises(RootError, match="not a queue's folder"):
        Queue.open(tmp_path)


def test_a_submitted_job_waits_and_is_found_by_the_beginning_of_its_id(queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs", user="ann")
    row = queue.get(job[:8])
    assert (row.id, row.state, row.user) == (job, S.QUEUED, "ann")
    assert (queue.root.spec(job) / "job.json").is_file()


def test_submitting_twice_is_submitting_once(queue, tmp_path):
    folder = job_folder(tmp_path / "jobs")
    first, second = (queue.submit(folder, by="ann") for _ in range(2))
    assert (first.is_new, second.is_new) == (True, False)
    assert first.job.id == second.job.id
    assert len(queue.list().jobs) == 1


def test_changes_count_instead_of_what_job_json_says(queue, tmp_path):
    folder = job_folder(tmp_path / "jobs", user="ann", priority=3)
    row = queue.submit(folder, by="root", user="bob", changes={"priority": -1, "id": "mine"}).job
    assert (row.id, row.user, row.priority) == ("mine", "bob", -1)


def test_a_zip_of_a_job_folder_is_a_job(queue, tmp_path):
    folder = job_folder(tmp_path / "jobs")
    shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    row = queue.submit(tmp_path / "packed.zip", by="ann", user="ann").job
    assert (row.name, row.user, row.state) == ("lenet", "ann", S.QUEUED)
    assert (queue.root.spec(row.id) / "model.umodel").read_bytes() == (folder / "model.umodel").read_bytes()


def test_the_same_token_is_the_first_job_again_or_an_error(queue, tmp_path):
    folder = job_folder(tmp_path / "jobs")
    first, second = (queue.submit(folder, by="ann", changes={"client_token": "t"}) for _ in range(2))
    assert (second.is_new, second.job.id) == (False, first.job.id)
    with pytest.raises(ConflictError):
        queue.submit(job_folder(tmp_path / "jobs", "other"), by="ann", changes={"client_token": "t"})


@pytest.mark.parametrize("name", ["nowhere", "file.txt"])
def test_what_is_neither_a_folder_nor_a_zip_is_refused(name, queue, tmp_path):
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(InvalidSubmission, match=r"a job folder or a \.zip"):
        queue.submit(tmp_path / name, by="ann")


def test_a_shortened_id_that_fits_two_jobs_is_refused(queue, tmp_path):
    submitted(queue, tmp_path / "jobs", "lenet-a")
    submitted(queue, tmp_path / "jobs", "lenet-b")
    with pytest.raises(AmbiguousIdError):
        queue.cancel("lenet", by="ann")


@pytest.mark.parametrize("verb", VERBS)
def test_another_users_job_does_not_exist(verb, queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs", user="ann")
    with pytest.raises(UnknownJobError):
        getattr(queue, verb)(job, by="bob", user="bob")
    with pytest.raises(UnknownJobError):
        queue.get(job, user="bob")
    assert queue.get(job).state is S.QUEUED


@pytest.mark.parametrize("state", list(WAYS))
@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_does_in_each_state_what_the_table_says(verb, state, queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    bring(queue, job, state)
    expected = EXPECTED[verb].get(state)
    if expected is None:
        with pytest.raises(ConflictError, match=f"it is {state}"):
            getattr(queue, verb)(job, by="ann")
        assert queue.get(job).state is state
        return
    for _ in range(2):  # repeating it succeeds
        outcome = getattr(queue, verb)(job, by="ann")
        if expected == "ask":
            assert (outcome.done, outcome.job.state) == (False, state)
            assert "supervisor not running" in outcome.text
            assert [(c.verb, c.by) for c in queue.store.pending()] == [(verb, "ann")]
        else:
            assert (outcome.done, outcome.job.state) == (True, expected)
            assert queue.store.pending() == []


def test_what_is_done_at_once_is_on_record_with_who_asked(queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    before = queue.get(job).submit_time
    queue.pause(job, by="ann")
    queue.resume(job, by="bob")
    cancelled = queue.cancel(job, by="cid").job
    assert [(move.new, move.by) for move in queue.store.transitions(job)][1:] == [
        (S.PAUSED, "ann"),
        (S.QUEUED, "bob"),
        (S.CANCELLED, "cid"),
    ]
    assert cancelled.submit_time == before
    assert cancelled.finished_time is not None
    assert cancelled.reason == "cancelled by cid"


def test_a_verb_waits_for_the_supervisor_where_it_must_act(queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    bring(queue, job, S.RUNNING)
    with Supervisor(queue.root):
        outcome = queue.checkpoint(job, by="ann", wait_seconds=20)
        assert (outcome.done, outcome.text) == (True, "checkpointed: step 7, jobs/x/ckpt/1-7.safetensors")
        outcome = queue.cancel(job, by="ann", wait_seconds=20)
    assert (outcome.done, outcome.text, outcome.job.state) == (True, "cancelled", S.CANCELLED)
    assert outcome.job.holder is None


def test_several_can_be_asked_for_before_one_is_waited_for(queue, tmp_path):
    jobs = [submitted(queue, tmp_path / "jobs", name) for name in ("a", "b")]
    for job in jobs:
        bring(queue, job, S.RUNNING)
    asked = [queue.pause(job, by="ann") for job in jobs]
    assert [outcome.done for outcome in asked] == [False, False]
    with Supervisor(queue.root):
        done = [queue.finish(outcome, 20) for outcome in asked]
    assert [outcome.job.state for outcome in done] == [S.PAUSED, S.PAUSED]


def test_what_the_supervisor_could_not_do_is_a_conflict(queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    bring(queue, job, S.RUNNING)
    with Supervisor(queue.root, refuse={"pause"}), pytest.raises(ConflictError, match="it is too late"):
        queue.pause(job, by="ann", wait_seconds=20)


def test_resume_takes_back_a_pause_that_is_still_to_be_done(queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    bring(queue, job, S.RUNNING)
    assert queue.resume(job, by="ann").text == "already running"
    queue.pause(job, by="ann")
    assert not queue.resume(job, by="ann").done
    assert [command.verb for command in queue.store.pending()] == ["pause", "resume"]


def test_many_at_once_cancel_a_job_once(queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    outcomes, errors = [], []

    def cancel():
        try:
            with Queue.open(queue.root.path) as mine:
                outcomes.append(mine.cancel(job, by="ann"))
        except UnifiedError as error:
            errors.append(error)

    threads = [threading.Thread(target=cancel) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert {(outcome.done, outcome.job.state) for outcome in outcomes} == {(True, S.CANCELLED)}
    assert [move.new for move in queue.store.transitions(job)] == [S.QUEUED, S.CANCELLED]


def test_a_job_that_is_off_its_slot_is_saved_already(queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    with pytest.raises(ConflictError, match="has no checkpoint"):
        queue.checkpoint(job, by="ann")
    bring(queue, job, S.RUNNING)
    with_checkpoint(queue, job, step=7)
    row = queue.get(job)
    for state in (S.PAUSING, S.PAUSED):
        row = queue.store.move(job, state, old=row.state, epoch=row.epoch, reason="asked", by="supervisor")
    outcome = queue.checkpoint(job, by="ann")
    assert outcome.done
    assert "step 7" in outcome.text


@pytest.mark.parametrize("from_scratch", [False, True])
def test_requeue_gives_all_tries_back_and_keeps_checkpoints_unless_told(from_scratch, queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    bring(queue, job, S.RUNNING)
    path = with_checkpoint(queue, job)
    beside = path.with_suffix(".json")
    beside.write_text("{}")
    row = queue.get(job)
    spoiled = {"num_job_failures": 3, "num_infra_failures": 2, "num_blames": 2, "is_alone": True, "last_fault": "nan@7"}
    queue.store.move(
        job,
        S.DEAD,
        old=row.state,
        epoch=row.epoch,
        reason="quarantined",
        by="supervisor",
        steps_done=7,
        **spoiled,
    )
    fresh = queue.requeue(job, by="ann", from_scratch=from_scratch).job
    assert (fresh.num_job_failures, fresh.num_infra_failures, fresh.num_blames) == (0, 0, 0)
    assert (fresh.is_alone, fresh.last_fault, fresh.finished_time) == (False, None, None)
    assert fresh.steps_done == (0 if from_scratch else 7)
    assert (path.exists(), beside.exists()) == (not from_scratch, not from_scratch)
    assert len(queue.store.checkpoints(job)) == (0 if from_scratch else 1)


def test_requeue_is_refused_when_what_was_submitted_is_gone(queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    bring(queue, job, S.FAILED)
    (queue.root.spec(job) / "job.json").unlink()
    with pytest.raises(ConflictError, match="submit it anew"):
        queue.requeue(job, by="ann")


def test_wait_yields_each_as_it_ends(queue, tmp_path):
    first, second = (submitted(queue, tmp_path / "jobs", name) for name in ("a", "b"))
    bring(queue, second, S.FINISHED)
    waiting = queue.wait([first, second], timeout=20)
    assert next(waiting).id == second
    queue.cancel(first, by="ann")
    assert [row.id for row in waiting] == [first]


def test_wait_ends_with_its_time(queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    with pytest.raises(TimeoutError, match=job):
        list(queue.wait([job], timeout=0.05))


def test_the_reason_says_whether_a_supervisor_runs(queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    assert queue.reason(queue.get(job)) == "supervisor not running"
    queue.store.set_reason({job: "3 jobs before it"})
    with Supervisor(queue.root):
        assert queue.is_served
        assert queue.reason(queue.get(job)) == "3 jobs before it"
    assert not queue.is_served


def test_the_reason_of_a_retry_says_when_and_which(queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs", max_retries=2)
    row = bring(queue, job, S.RETRY_WAIT, not_before=time.time() + 1000, num_job_failures=2)
    assert queue.reason(row).startswith("retry in 16 min ")
    assert "(2 of 2): now retry-wait" in queue.reason(row)


@pytest.mark.parametrize("state", list(WAYS))
def test_every_job_can_be_explained(state, queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    bring(queue, job, state)
    lines = queue.explain(job)
    assert lines[0].startswith(f"{job} is {state}: ")
    assert all(lines)
    if state not in ENDED:
        assert any("unified serve" in line for line in lines)


def test_metrics_from_a_step_on_without_the_line_being_written(queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    assert queue.metrics(job) == []
    rows = [{"step": step, "loss": 1.0 / (step + 1)} for step in range(5)]
    text = "\n".join(json.dumps(row) for row in rows[:3]) + "\nnot whole\n"
    queue.root.metrics(job).write_text(text + json.dumps(rows[3]) + "\n" + json.dumps(rows[4])[:7])
    assert queue.metrics(job) == rows[:4]
    assert queue.metrics(job, since=2) == rows[2:4]


def test_artifacts_are_the_files_of_the_result(queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    assert queue.artifacts(job) == []
    folder = queue.root.result(job)
    (folder / "more").mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    (folder / "more" / "x").write_text("x")
    (folder / "link").symlink_to("/etc/hostname")
    assert [path.relative_to(folder).as_posix() for path in queue.artifacts(job)] == ["more/x", "result.json"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(verbs=st.lists(st.sampled_from([*VERBS, "run"]), min_size=1, max_size=12))
def test_whatever_is_asked_in_whatever_order_only_legal_moves_are_made(verbs, queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs", f"job-{time.monotonic_ns()}")
    for verb in verbs:
        row = queue.get(job)
        if verb == "run":
            if row.state is S.QUEUED:
                bring(queue, job, S.FAILED)
            continue
        try:
            outcome = getattr(queue, verb)(job, by="ann")
        except ConflictError:
            assert queue.get(job) == row
        else:
            assert outcome.done
            assert outcome.job == queue.get(job)
    moves = queue.store.transitions(job)
    assert all(move.new in LEGAL_MOVES[move.old] for move in moves[1:])
    assert queue.get(job).state not in RESIDENT
