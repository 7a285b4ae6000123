"""What the laws show schedulers and tell them: units, slots, histories and workloads, drawn by hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from schedulers.base import (
    Cancelled,
    Failed,
    Finished,
    JobView,
    Paused,
    Resumed,
    SlotView,
    Submitted,
    TurnCut,
    TurnDone,
    WorkerLost,
)
from schedulers.testing.run import an_event

UNITS = [f"unit-{index}" for index in range(6)]
NOW = 9.0
TWO_UNITS = [JobView(id=unit_id, submit_time=0.0) for unit_id in UNITS[:2]]
TWO_IDLE_SLOTS = [SlotView(id=0), SlotView(id=1)]

_small = st.integers(0, 2)
_users = st.sampled_from([(("ann", 1.0),), (("bob", 1.0),), (("ann", 0.5), ("bob", 0.5))])


@st.composite
def ready_units(draw: st.DrawFn) -> list[JobView]:
    """Units in any order, with few distinct values, so that ties are common, and extreme ones."""
    return [
        JobView(
            id=unit_id,
            submit_time=draw(st.sampled_from([0.0, 1.5, NOW])),
            waiting_since=draw(st.sampled_from([None, NOW])),
            user_shares=draw(_users),
            priority=draw(st.sampled_from([-(10**9), 0, 0, 3, 10**18])),
            weight=draw(st.sampled_from([1.0, 1e-6, 1e6])),
            deadline=draw(st.sampled_from([None, 0.0, 20.0])),
            is_deadline_soft=draw(st.booleans()),
            num_parameters=draw(_small),
            num_epochs=draw(_small) + 1,
            steps_total=draw(_small),
            step_seconds=draw(st.sampled_from([None, 0.0, 1.0, 1e12])),
            estimate_seconds=draw(st.sampled_from([None, 0.0, 5.0, float("inf")])),
            attained_seconds=draw(st.sampled_from([0.0, 3.0])),
            can_corun=draw(st.booleans()),
            has_begun=draw(st.booleans()),
            slot_id=draw(st.none() | _small),
        )
        for unit_id in draw(st.lists(st.sampled_from(UNITS), unique=True))
    ]


_chosen = st.frozensets(st.sampled_from(UNITS))
slots_of_a_host = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.none() | _chosen, _chosen), max_size=4).map(
    lambda rows: [
        SlotView(
            id=index,
            running=tuple(f"running-{index}-{place}" for place in range(min(num_running, corun_limit))),
            corun_limit=corun_limit,
            accepts=accepts,
            prefers=prefers,
        )
        for index, (num_running, corun_limit, accepts, prefers) in enumerate(rows)
    ]
)

_kinds = st.sampled_from([Submitted, TurnDone, TurnDone, TurnCut, Paused, Resumed, WorkerLost, Finished, Failed, Cancelled])
histories = st.lists(st.builds(an_event, _kinds, st.sampled_from(UNITS), st.integers(0, 9)), max_size=25)


@st.composite
def workloads(draw: st.DrawFn, *, with_zeros: bool = False) -> list[JobView]:
    """Jobs of any length, arriving at any time, as they are before they begin; with zeros, also of none."""
    least = 0 if with_zeros else 1
    units = []
    for unit_id in draw(st.lists(st.sampled_from(UNITS), unique=True, min_size=1)):
        epochs, steps_per_epoch = draw(st.integers(least, 4)), draw(st.integers(1, 5))
        units.append(
            JobView(
                id=unit_id,
                submit_time=draw(st.integers(0, 12)),
                user_shares=draw(_users),
                priority=draw(st.integers(-1, 1)),
                weight=draw(st.sampled_from([1.0, 2.0])),
                deadline=draw(st.none() | st.integers(0, 60)),
                num_parameters=draw(st.integers(0, 3)),
                num_epochs=epochs,
                steps_per_epoch=steps_per_epoch,
                steps_total=epochs * steps_per_epoch,
                step_seconds=draw(st.none() | st.integers(least, 3)),
                can_corun=draw(st.booleans()),
            )
        )
    return units


some_cuts = st.dictionaries(st.integers(0, 12), st.sampled_from([Paused, WorkerLost]), max_size=4)
some_numbers = st.frozensets(st.integers(0, 30), max_size=6)
