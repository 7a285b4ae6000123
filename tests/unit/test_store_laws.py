"""What every store does, whatever its database: submissions, moves, leases, reports."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.store_cases import (
    DATABASES,
    NEW,
    TurnedClock,
    add,
    bring,
    check_histories,
    check_row,
    checkpoint,
    empty_database,
    go,
    new_job,
    take,
)
from unified.job_state import LEGAL_MOVES, RESIDENT, IllegalMoveError, JobState
from unified.queue.clock import Clock
from unified.queue.errors import ConflictError, FencedError, UnknownJobError
from unified.queue.records import NewJob, Progress
from unified.queue.store import JobStore

S = JobState
HOUR = 3600.0


@pytest.fixture
def now() -> TurnedClock:
    return TurnedClock()


@pytest.fixture(params=DATABASES)
def where(request, tmp_path: Path) -> str | Path:
    return empty_database(request.param, tmp_path)


@pytest.fixture
def store(where, now) -> Iterator[JobStore]:
    with JobStore.open(where, clock=now.clock) as store:
        yield store


# Submissions


def test_a_submitted_job_waits_with_all_it_came_with(store, now):
    new = replace(
        NEW,
        spec={"name": "Ünïcode ✓", "lr": [0.1, None], "deep": {"a": True}},
        client_token="t",
        priority=-3,
        weight=2.5,
        deadline_seconds=60.0,
        max_retries=0,
        num_bytes=1 << 40,
    )
    submitted = store.submit(new, by="spool")
    row = store.get(new.id)
    assert submitted.is_new
    assert submitted.job == row
    fields = {field.name for field in dataclasses.fields(NewJob)} - {"grant"}  # which is kept with the signatures used
    assert {name: getattr(row, name) for name in fields} == {name: getattr(new, name) for name in fields}
    assert (row.state, row.epoch, row.submit_time, row.steps_done) == (S.QUEUED, 0, now.wall, 0)
    assert (row.admission, row.metrics, row.is_alone, row.holder) == (None, {}, False, None)
    [move] = store.transitions(new.id)
    assert (move.old, move.new, move.time, move.by) == (None, S.QUEUED, now.wall, "spool")


def test_the_same_submission_twice_is_one_job(store, now):
    first = store.submit(NEW, by="a").job
    now.turn(5)
    again = store.submit(NEW, by="b")
    assert not again.is_new
    assert again.job == first
    assert len(store.transitions(NEW.id)) == 1


def test_the_same_token_and_content_answer_with_the_first_job(store):
    first = store.submit(replace(NEW, client_token="t"), by="a").job
    again = store.submit(replace(NEW, id="other", client_token="t"), by="a")
    assert (again.is_new, again.job) == (False, first)
    with pytest.raises(UnknownJobError):
        store.get("other")


def test_an_id_or_token_of_other_content_is_refused_and_changes_nothing(store):
    first = store.submit(replace(NEW, client_token="t"), by="a").job
    with pytest.raises(ConflictError, match=r"id 'lenet-1' was submitted before with other content"):
        store.submit(replace(NEW, content_sha256="bb"), by="a")
    with pytest.raises(ConflictError, match=r"client_token 't' was submitted before"):
        store.submit(replace(NEW, id="other", content_sha256="bb", client_token="t"), by="a")
    assert store.jobs() == [first]


def test_a_token_is_its_users_own(store):
    store.submit(replace(NEW, client_token="t"), by="a")
    other = store.submit(replace(NEW, id="other", user="bob", content_sha256="bb", client_token="t"), by="b")
    assert other.is_new
    assert len(store.jobs()) == 2


def test_a_submission_that_comes_again_after_the_end_does_not_run_again(store):
    end = bring(store, 1, S.FINISHED)
    again = store.submit(new_job(1), by="a")
    assert (again.is_new, again.job) == (False, end)


# Moves


def test_only_moves_of_the_table_are_made(store):
    for number, (old, to) in enumerate(itertools.product(S, S)):
        row = bring(store, number, old)
        before = store.transitions(row.id)
        if to in LEGAL_MOVES[old]:
            moved = go(store, row.id, to)
            check_row(moved)
            last = store.transitions(row.id)[-1]
            assert (moved.state, last.old, last.new) == (to, old, to)
        elif to is not S.LOADING:
            with pytest.raises(IllegalMoveError, match=f"cannot go from {old} to {to}"):
                go(store, row.id, to)
            assert (store.get(row.id), store.transitions(row.id)) == (row, before)
        else:
            with pytest.raises(FencedError):
                take(store, row.id)
            assert (store.get(row.id), store.transitions(row.id)) == (row, before)
    check_histories(store)


def test_a_job_is_taken_to_a_slot_by_a_lease_alone(store):
    row = bring(store, 1, S.QUEUED)
    with pytest.raises(IllegalMoveError, match="by a lease"):
        store.move(row.id, S.LOADING, old=S.QUEUED, epoch=0, reason="r", by="x")
    assert store.get(row.id) == row


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"epoch": 0}, FencedError),
        ({"epoch": 2}, FencedError),
        ({"holder": "h2"}, FencedError),
        ({"old": S.LOADING}, ConflictError),
    ],
)
def test_a_late_move_changes_nothing(store, wrong, error):
    row = bring(store, 1, S.RUNNING)
    before = store.transitions(row.id)
    with pytest.raises(error, match=rf"{row.id}.*running"):
        store.move(row.id, S.PAUSING, **({"old": S.RUNNING, "epoch": 1, "holder": "h1", "reason": "r", "by": "x"} | wrong))
    assert (store.get(row.id), store.transitions(row.id)) == (row, before)
    assert store.fenced_writes == (error is FencedError)


def test_whoever_lost_a_job_cannot_publish_its_result(store, now):
    row = bring(store, 1, S.RUNNING)
    now.turn(31)
    go(store, row.id, S.QUEUED)
    late = {"old": S.RUNNING, "epoch": 1, "reason": "finished", "by": "h1", "holder": "h1", "result_path": "results/x"}
    with pytest.raises(FencedError, match="held by nobody"):
        store.move(row.id, S.FINISHED, **late)
    take(store, row.id, holder="h2")
    go(store, row.id, S.RUNNING)
    with pytest.raises(FencedError, match="held by h2"):
        store.move(row.id, S.FINISHED, **late)
    assert store.get(row.id).result_path is None
    assert store.fenced_writes == 2


def test_moves_change_what_they_are_told_and_nothing_else(store, now):
    row = bring(store, 1, S.RUNNING)
    changes = {
        "num_job_failures": 1,
        "last_fault": "nan@3",
        "not_before": now.wall + 10,
        "is_alone": True,
        "metrics": {"acc": 0.5},
    }
    moved = go(store, row.id, S.RETRY_WAIT, **changes)
    lease = {"holder": None, "lease_expires": None, "boot_id": None, "slot": None}
    assert moved == replace(row, state=S.RETRY_WAIT, reason="to retry-wait", **changes, **lease)
    assert go(store, row.id, S.QUEUED).not_before is None


@pytest.mark.parametrize("name", ["state_", "id", "submit_time", "lease_expires", "spec"])
def test_a_move_cannot_change_what_is_fixed_or_unknown(store, name):
    row = bring(store, 1, S.RUNNING)
    with pytest.raises((ValueError, TypeError), match=name):
        go(store, row.id, S.PAUSING, **{name: 1})
    assert store.get(row.id) == row


def test_no_state_changes_silently(store):
    row = bring(store, 1, S.QUEUED)
    with pytest.raises(ValueError, match="needs a reason"):
        store.move(row.id, S.PAUSED, old=S.QUEUED, epoch=0, reason=" ", by="x")
    with pytest.raises(ValueError, match="needs a reason"):
        store.lease(row.id, holder="h", slot=0, seconds=1, reason="", by="x")
    assert store.get(row.id) == row


def test_times_of_a_life_are_kept(store, now):
    begin = now.wall
    [job] = add(store, 1)
    now.turn(10)
    assert go(store, job, S.LOADING, S.RUNNING).started_time == begin + 10
    now.turn(10)
    assert go(store, job, S.QUEUED, S.LOADING, S.RUNNING).started_time == begin + 10
    now.turn(10)
    assert go(store, job, S.FAILED).finished_time == begin + 30
    again = go(store, job, S.QUEUED)
    assert (again.finished_time, again.submit_time) == (None, begin)


@pytest.mark.parametrize(
    "act",
    [
        lambda store: store.get("x"),
        lambda store: store.resolve("x"),
        lambda store: store.move("x", S.PAUSED, old=S.QUEUED, epoch=0, reason="r", by="b"),
        lambda store: take(store, "x"),
        lambda store: store.admit("x", {}, steps_total=1, memory_bytes=1),
        lambda store: store.set_threads("x", 1),
        lambda store: store.command("x", "pause", by="b"),
        lambda store: store.add_checkpoint(checkpoint("x", 1, 1), holder="h"),
        lambda store: store.add_ban("x", "y"),
        lambda store: store.forget("x"),
    ],
    ids=["get", "resolve", "move", "lease", "admit", "threads", "command", "checkpoint", "ban", "forget"],
)
def test_an_unknown_job_is_said_to_be_unknown(store, act):
    with pytest.raises(UnknownJobError, match=r"there is no job '[xy]'"):
        act(store)


# Leases


def test_a_lease_is_given_once(store):
    [job] = add(store, 1)
    row = take(store, job, holder="h1", slot=3)
    assert (row.state, row.epoch, row.holder, row.slot, row.boot_id) == (S.LOADING, 1, "h1", 3, "first boot")
    with pytest.raises(FencedError, match="it is loading by now"):
        take(store, job, holder="h2")
    assert store.get(job) == row
    assert go(store, job, S.QUEUED, S.LOADING).epoch == 2


def test_leases_end_unless_they_are_renewed_all_at_once(store, now):
    mine = [bring(store, number, state).id for number, state in enumerate(RESIDENT)]
    [other] = add(store, 99)
    take(store, other, holder="h2")
    now.turn(29)
    assert store.expired() == []
    assert store.renew("h1", 30) == set(mine)
    now.turn(2)
    assert [row.id for row in store.expired()] == [other]
    now.turn(28)
    assert {row.id for row in store.expired()} == {other, *mine}
    assert store.renew("nobody", 30) == set()
    assert store.renew("h2", 30) == {other}
    assert {row.id for row in store.expired()} == set(mine)


def test_jobs_that_left_their_slot_are_not_renewed_and_do_not_expire(store, now):
    for number, state in enumerate(set(S) - RESIDENT):
        bring(store, number, state)
    assert store.renew("h1", 30) == set()
    now.turn(HOUR)
    assert store.expired() == []
    assert store.holders() == set()


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_a_jump_of_the_wall_clock_loses_no_lease(store, now, jump):
    rows = [bring(store, number, state) for number, state in enumerate(RESIDENT)]
    now.wall += jump
    assert store.expired() == []
    assert store.renew("h1", 30) == {row.id for row in rows}
    now.turn(29)
    assert store.expired() == []
    now.turn(1)
    assert len(store.expired()) == len(rows)


def test_another_boot_loses_all_leases(where, store, now):
    rows = [bring(store, number, state) for number, state in enumerate(RESIDENT)]
    now.boot_id, now.monotonic = "second boot", 3.0
    with JobStore.open(where, clock=now.clock) as later:
        assert {row.id for row in later.expired()} == {row.id for row in rows}
        assert later.renew("h1", 30) == {row.id for row in rows}  # nobody took them meanwhile
        assert later.expired() == []


def test_holders_are_known_with_what_they_hold(store):
    one, two, three = add(store, 1, 2, 3)
    take(store, one, holder="h1")
    take(store, two, holder="h2")
    take(store, three, holder="h1")
    go(store, three, S.QUEUED)
    assert store.holders() == {"h1", "h2"}
    assert [row.id for row in store.held_by("h1")] == [one]


def test_the_clocks_of_the_host_are_those_of_every_process():
    clock = Clock.system()
    assert clock.boot_id() == Clock.system().boot_id() != ""
    before = time.monotonic()
    assert before <= clock.monotonic() <= time.monotonic()


# Reports


def test_a_report_writes_what_it_has_and_keeps_the_rest(store):
    row = bring(store, 1, S.RUNNING)
    full = {"loss": 0.5, "metrics": {"acc": 0.9}, "step_seconds": 0.01, "memory_bytes": 1 << 33, "training_seconds": 4.0}
    assert store.note([Progress(job=row.id, epoch=1, steps_done=5, **full)], holder="h1") == set()
    assert store.get(row.id) == replace(row, steps_done=5, **full)
    store.note([Progress(job=row.id, epoch=1, steps_done=7)], holder="h1")
    assert store.get(row.id) == replace(row, steps_done=7, **full)
    assert len(store.transitions(row.id)) == 3


def test_late_reports_are_named_and_the_others_written(store):
    rows = [bring(store, number, S.RUNNING) for number in range(4)]
    go(store, rows[1].id, S.QUEUED)
    go(store, rows[2].id, S.QUEUED, S.LOADING)
    reports = [Progress(job=row.id, epoch=1, steps_done=9) for row in rows]
    assert store.note(reports, holder="h1") == {rows[1].id, rows[2].id}
    assert [store.get(row.id).steps_done for row in rows] == [9, 0, 0, 9]
    assert store.note(reports[:1], holder="h2") == {rows[0].id}
    assert store.fenced_writes == 3


def test_a_reason_is_changed_of_waiting_jobs_alone_and_silently(store):
    rows = {state: bring(store, number, state) for number, state in enumerate(S)}
    store.set_reason({row.id: "no room" for row in rows.values()})
    store.set_reason({})
    for state, row in rows.items():
        waits = state in {S.QUEUED, S.RETRY_WAIT}
        assert store.get(row.id) == (replace(row, reason="no room") if waits else row)
    check_histories(store)


def test_only_a_job_that_waits_is_admitted(store):
    found = {"signature": "s", "units": [1, 2]}
    for number, state in enumerate(S):
        row = bring(store, number, state)
        is_admitted = store.admit(row.id, found, steps_total=10, memory_bytes=20)
        assert is_admitted == (state in {S.QUEUED, S.PAUSED})
        expected = replace(row, admission=found, steps_total=10, memory_bytes=20) if is_admitted else row
        assert store.get(row.id) == expected
