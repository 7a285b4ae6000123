"""Which of many waiting jobs the scheduler chooses among, out of a real store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schedulers import registry
from schedulers.base import Scheduler
from unified.job_state import JobState
from unified.queue.records import NewJob
from unified.queue.store import JobStore
from unified.service.shortlist import Shortlist

SPEC = {"name": "x", "epochs": 2, "batch_size": 8}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    with JobStore.open(tmp_path / "store.db") as opened:
        yield opened


def waiting(store: JobStore, name: str, step_seconds: float | None, **facts: Any) -> None:
    """Let a job wait whose check found steps of that length."""
    store.submit(NewJob(id=name, name=name, user="ann", spec=SPEC, content_sha256=name, **facts), by="ann")
    estimate = {"num_parameters": 7, "resident_bytes": 10, "peak_bytes": 20}
    admission = {"train": {"num_samples": 20}, "estimate": estimate, "step_seconds": step_seconds}
    store.admit(name, admission, steps_total=6, memory_bytes=20)


def shortlist(store: JobStore, scheduler: str | Scheduler = "srtf", window: int = 2) -> Shortlist:
    policy = registry.create(scheduler) if isinstance(scheduler, str) else scheduler
    return Shortlist(store=store, scheduler=policy, window=window, started=0.0)


def test_it_holds_the_first_in_the_policys_order(store: JobStore) -> None:
    for name, seconds in (("a", 9.0), ("b", 5.0), ("c", 1.0), ("d", 3.0)):
        waiting(store, name, seconds)
    assert set(shortlist(store).look()) == {"c", "d"}
    assert set(shortlist(store, "fcfs").look()) == {"a", "b"}
    assert set(shortlist(store, window=9).look()) == set("abcd")


def test_what_it_knows_of_a_job_is_what_the_policy_will_be_shown(store: JobStore) -> None:
    waiting(store, "a", 0.5, weight=2.0, deadline_seconds=60.0, priority=3)
    view = shortlist(store).look()["a"].view
    assert (view.steps_total, view.steps_per_epoch, view.num_epochs, view.num_parameters) == (6, 3, 2, 7)
    assert (view.step_seconds, view.weight, view.priority, view.user_shares) == (0.5, 2.0, 3, (("ann", 1.0),))
    assert view.deadline == pytest.approx(view.submit_time + 60.0)


def test_a_policy_without_an_order_chooses_among_the_urgent_and_the_first(store: JobStore) -> None:
    class Unordered:
        needs: frozenset[str] = frozenset()

        def select(self, now: float, ready: object, slots: object) -> list[Any]:
            return []

    for number, priority in enumerate((5, 5, 5, 0)):
        waiting(store, f"j{number}", None, priority=priority)
    assert set(shortlist(store, Unordered()).look()) == {"j0", "j3"}


def test_who_comes_or_goes_is_seen_at_once_while_all_fit_and_soon_if_not(store: JobStore) -> None:
    seen = shortlist(store)
    waiting(store, "a", 1.0)
    assert set(seen.look()) == {"a"}
    waiting(store, "b", 2.0)
    assert set(seen.look()) == {"a", "b"}
    store.move("a", JobState.CANCELLED, old=JobState.QUEUED, epoch=0, reason="on request", by="ann")
    assert set(seen.look()) == {"b"}
    waiting(store, "c", 3.0)
    waiting(store, "d", 0.5)
    assert set(seen.look()) == {"b", "d"}
    waiting(store, "e", 0.1)
    assert set(seen.look()) == {"b", "d"}  # it was ranked a moment ago
