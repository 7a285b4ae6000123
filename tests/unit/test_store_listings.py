"""What every store tells of its jobs, and what it keeps beside them."""

from __future__ import annotations

import itertools
from collections import Counter
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
    checkpoint,
    empty_database,
    go,
    new_job,
    take,
    walk,
)
from unified.job_state import ENDED, JobState
from unified.queue.errors import AmbiguousIdError, ConflictError, FencedError, UnknownJobError
from unified.queue.records import Usage
from unified.queue.store import JobStore
from unified.queue.store_queries import BadCursorError

S = JobState


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


def ids(rows) -> list[str]:
    return [row.id for row in rows]


# Listings


def test_an_id_may_be_shortened_while_unique(store):
    for job in ("lenet-1", "lenet-12", "lenet-2", "Lenet-3", "a%b", "a_b"):
        store.submit(replace(NEW, id=job, content_sha256=job), by="x")
    for prefix, job in [("lenet-1", "lenet-1"), ("lenet-12", "lenet-12"), ("L", "Lenet-3"), ("a%", "a%b"), ("a_", "a_b")]:
        assert store.resolve(prefix) == job
    with pytest.raises(AmbiguousIdError, match=r"'lenet' fits several jobs: lenet-1, lenet-12, lenet-2;"):
        store.resolve("lenet")
    for prefix in ("lenet-3", "lenet-123", "%", "", "_"):
        with pytest.raises(UnknownJobError):
            store.resolve(prefix)


def test_an_ambiguous_id_names_only_some_of_many(store):
    add(store, *range(6))
    with pytest.raises(AmbiguousIdError, match="job-000, job-001, job-002, …; write more"):
        store.resolve("job")


def test_others_jobs_do_not_exist(store):
    add(store, 1, user="ada")
    add(store, 2, user="bob")
    assert store.resolve("job-", user="ada") == "job-001"
    with pytest.raises(UnknownJobError):
        store.resolve("job-001", user="bob")
    assert ids(store.jobs(user="bob")) == ids(store.page(user="bob").jobs) == ["job-002"]
    assert store.counts("bob") == {S.QUEUED: 1}
    assert store.counts("eve") == {}


def test_jobs_are_listed_in_the_order_they_came(store, now):
    for number in (3, 1):
        add(store, number)
    now.turn(1)
    add(store, 0)
    assert ids(store.jobs()) == ids(store.page().jobs) == ["job-001", "job-003", "job-000"]
    assert ids(store.page(newest_first=True).jobs) == ["job-000", "job-003", "job-001"]


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("limit", [1, 3, 7, 8, 100])
def test_pages_are_the_listing_cut_in_pieces(store, now, limit, newest_first):
    for number in range(8):
        add(store, number, user="ada" if number % 4 else "bob")
        now.turn(number % 2)
    for query in ({}, {"user": "ada"}, {"states": [S.QUEUED, S.PAUSED]}, {"states": [S.PAUSED]}):
        whole = ids(store.jobs(**query))
        pages = list(walk(store, limit, newest_first=newest_first, **query))
        assert ids(itertools.chain(*pages)) == (whole[::-1] if newest_first else whole)
        assert all(len(page) == limit for page in pages[:-1])
        assert len(pages[-1]) <= limit


@pytest.mark.parametrize("newest_first", [False, True])
def test_a_job_comes_once_whatever_happens_between_two_pages(store, now, newest_first):
    there = add(store, *range(10, 20))
    seen = []
    for number, page in enumerate(walk(store, 3, newest_first=newest_first)):
        seen += ids(page)
        now.turn(1)
        add(store, number)
        go(store, there[number], S.LOADING, S.RUNNING, S.FAILED)
    assert max(Counter(seen).values()) == 1
    assert set(there) <= set(seen)


@pytest.mark.parametrize("cursor", ["", "x", "ü", "W10", "bnVsbA", "WzEsMiwzXQ", "e30", "W" * 20_000])
def test_a_cursor_from_elsewhere_is_refused(store, cursor):
    with pytest.raises(BadCursorError, match="is not from a page in this order"):
        store.page(cursor=cursor)


def test_a_cursor_of_the_other_order_is_refused(store):
    add(store, 1, 2)
    cursor = store.page(limit=1).cursor
    with pytest.raises(BadCursorError):
        store.page(cursor=cursor, newest_first=True)
    with pytest.raises(ValueError, match="got limit 0"):
        store.page(limit=0)


def test_counts_are_those_of_the_listing(store):
    for number, state in enumerate([*S, S.QUEUED, S.DEAD]):
        bring(store, number, state)
    assert store.counts() == Counter(row.state for row in store.jobs())
    for states in ([S.DEAD], [S.QUEUED, S.PAUSED], list(ENDED)):
        assert ids(store.jobs(states=states)) == ids(row for row in store.jobs() if row.state in states)


def test_the_queue_is_ordered_by_priority_then_time(store, now):
    for number, priority in enumerate([5, 0, -1, 0, 5]):
        add(store, number, priority=priority)
        now.turn(1)
    order = ["job-002", "job-001", "job-003", "job-000", "job-004"]
    assert ids(store.unchecked(10)) == order
    assert store.waiting(10) == []
    for job in order[1:]:
        assert store.admit(job, {}, steps_total=1, memory_bytes=1)
    assert ids(store.unchecked(10)) == order[:1]
    assert ids(store.waiting(10)) == order[1:]
    assert ids(store.waiting(2)) == order[1:3]
    go(store, order[1], S.LOADING, S.QUEUED)
    assert ids(store.waiting(10)) == order[1:]  # back in its old place
    go(store, order[2], S.PAUSED)
    assert ids(store.waiting(10)) == [order[1], *order[3:]]


def test_a_retry_is_due_when_its_time_has_come(store, now):
    soon, later, anytime, other = add(store, 1, 2, 3, 4)
    for job, seconds in ((soon, 10), (later, 900), (anytime, None)):
        go(store, job, S.LOADING)
        go(store, job, S.RETRY_WAIT, not_before=None if seconds is None else now.wall + seconds)
    go(store, other, S.PAUSED)
    assert ids(store.due()) == [anytime]
    now.turn(10)
    assert ids(store.due()) == [soon, anytime]
    assert ids(store.due(now.wall + 900)) == [soon, later, anytime]
    now.wall -= 3600  # all retries lie further ahead than any wait that is ever set
    assert ids(store.due()) == [soon, later, anytime]


def test_bytes_are_summed_by_user_until_jobs_are_forgotten(store):
    add(store, 1, 2, user="ada", num_bytes=1 << 40)
    [job] = add(store, 3, user="bob", num_bytes=5)
    assert store.bytes_by_user() == {"ada": 2 << 40, "bob": 5}
    go(store, job, S.FAILED)
    go(store, "job-001", S.FAILED, num_bytes=7)
    store.forget(job)
    assert store.bytes_by_user() == {"ada": (1 << 40) + 7}


# Beside the jobs


def test_checkpoints_are_listed_newest_first_and_fenced(store):
    row = bring(store, 1, S.RUNNING)
    for step in (10, 20):
        store.add_checkpoint(checkpoint(row.id, 1, step), holder="h1")
    go(store, row.id, S.QUEUED)
    with pytest.raises(FencedError):
        store.add_checkpoint(checkpoint(row.id, 1, 30), holder="h1")
    take(store, row.id, holder="h2")
    for late in ({"epoch": 1, "holder": "h1"}, {"epoch": 2, "holder": "h1"}, {"epoch": 1, "holder": "h2"}):
        with pytest.raises(FencedError, match=f"a write of {late['holder']} in epoch {late['epoch']} came too late"):
            store.add_checkpoint(checkpoint(row.id, late["epoch"], 30), holder=late["holder"])
    store.add_checkpoint(checkpoint(row.id, 2, 15), holder="h2")
    store.add_checkpoint(checkpoint(row.id, 2, 15), holder="h2")
    assert [(saved.epoch, saved.step) for saved in store.checkpoints(row.id)] == [(2, 15), (1, 20), (1, 10)]
    assert store.checkpoints(row.id)[0] == checkpoint(row.id, 2, 15)
    store.drop_checkpoint(row.id, 1, 20)
    store.drop_checkpoint(row.id, 9, 9)
    assert [saved.step for saved in store.checkpoints(row.id)] == [15, 10]
    assert store.fenced_writes == 4


def test_commands_are_carried_out_once_and_in_order(store, now):
    one, two = add(store, 1, 2)
    asked = [
        store.command(one, "pause", by="ada"),
        store.command(two, "cancel", by="bob"),
        store.command(one, "resume", by="ada"),
    ]
    assert store.pending() == asked
    assert [(each.job, each.verb, each.by, each.time, each.outcome) for each in asked[:1]] == [
        (one, "pause", "ada", now.wall, None)
    ]
    store.settle(asked[0].sequence, "done")
    store.settle(asked[0].sequence, "conflict: again")
    assert store.pending() == asked[1:]
    assert store.get_command(asked[0].sequence) == replace(asked[0], outcome="done")
    with pytest.raises(UnknownJobError, match="there is no command 999"):
        store.get_command(999)


def test_an_ended_job_is_forgotten_with_all_its_rows(store):
    job, other = add(store, 1, 2)
    command = store.command(job, "checkpoint", by="ada")
    store.add_ban(job, other)
    take(store, job)
    store.add_checkpoint(checkpoint(job, 1, 5), holder="h1")
    with pytest.raises(ConflictError, match="it is loading and cannot be forgotten"):
        store.forget(job)
    go(store, job, S.FAILED)
    store.forget(job)
    assert ids(store.jobs()) == [other]
    assert (store.transitions(job), store.checkpoints(job), store.pending(), store.bans()) == ([], [], [], frozenset())
    with pytest.raises(UnknownJobError):
        store.get_command(command.sequence)
    assert store.command(other, "pause", by="ada").sequence > command.sequence  # a number is never given twice
    assert store.submit(new_job(1), by="ada").is_new
    check_histories(store)


@pytest.mark.parametrize("state", sorted(set(S) - ENDED))
def test_what_has_not_ended_is_never_forgotten(store, state):
    row = bring(store, 1, state)
    with pytest.raises(ConflictError):
        store.forget(row.id)
    assert store.get(row.id) == row


def test_a_ban_is_of_two_jobs_in_either_order(store):
    one, two, three = add(store, 1, 2, 3)
    store.add_ban(one, two)
    store.add_ban(two, one)
    store.add_ban(three, two)
    assert store.bans() == {frozenset({one, two}), frozenset({two, three})}
    with pytest.raises(ValueError, match="with itself"):
        store.add_ban(one, one)


def test_workers_are_kept_with_their_ends(store, now):
    first = store.worker_started(0, 100)
    store.worker_started(1, 101)
    now.turn(5)
    store.worker_ended(first, "signal 9")
    store.worker_ended(first, "exit 0")
    again = store.worker_started(0, 102)
    assert [(each.sequence, each.pid, each.ended, each.how) for each in store.workers(0)] == [
        (first, 100, now.wall, "signal 9"),
        (again, 102, None, None),
    ]
    assert [each.slot for each in store.workers()] == [0, 1, 0]


def test_usage_adds_up(store):
    store.add_usage("bob", 1.5, 1e12)
    store.add_usage("ada", 1.0, 1.0)
    store.add_usage("bob", 0.5, 1e12)
    assert store.usage() == [
        Usage(user="ada", slot_seconds=1.0, byte_seconds=1.0),
        Usage(user="bob", slot_seconds=2.0, byte_seconds=2e12),
    ]


def test_ticks_policies_and_words_keep_the_last(store, now):
    store.stamp("spool")
    now.turn(3)
    store.stamp("spool")
    store.stamp("lease")
    assert store.ticks() == {"spool": now.wall, "lease": now.wall}
    assert store.load_policy("las") is None
    store.save_policy("las", {"level": {"a": 1}})
    store.save_policy("las", {"level": {"a": 2}, "x": [1.5]})
    assert store.load_policy("las") == {"level": {"a": 2}, "x": [1.5]}
    assert store.get_meta("token") is None
    store.set_meta("token", "a")
    store.set_meta("token", "b")
    assert store.get_meta("token") == "b"
    store.check()


def test_threads_are_fixed(store):
    [job] = add(store, 1)
    store.set_threads(job, 4)
    assert store.get(job).num_threads == 4


def test_everything_is_there_when_a_store_is_opened_again(where, store, now):
    for number, state in enumerate(S):
        bring(store, number, state)
    row = bring(store, 50, S.RUNNING)
    store.add_checkpoint(checkpoint(row.id, 1, 5), holder="h1")
    store.command(row.id, "pause", by="ada")
    store.add_usage("ada", 1, 2)

    def everything(it):
        jobs = it.jobs()
        return jobs, [it.transitions(job.id) for job in jobs], it.checkpoints(row.id), it.pending(), it.usage(), it.counts()

    before = everything(store)
    store.close()
    with JobStore.open(where, clock=now.clock) as again:
        assert everything(again) == before
        check_histories(again)
