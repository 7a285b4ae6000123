"""What a decision costs: a policy's answer, and the whole of asking it, over the units that a full queue shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import perf_counter

from benchmarks.quantiles import Quantiles
from schedulers.base import Grant, Observes, SlotView, Submitted, TurnDone
from schedulers.registry import create
from unified.admission import DatasetRef, Estimate, ModelForm, ModelRef, Submission
from unified.deciding import Decider
from unified.job import JobSpec
from unified.job_state import JobState
from unified.ledger import JobRecord, Ledger
from unified.packer import Outlook, Rules, plan
from unified.placement import Placement, tenant_of
from unified.slots import Slot
from unified.units import Unit

NUM_RESIDENT, NUM_SLOTS, WINDOW = 256, 4, 200
PATIENCE_SECONDS = 10.0
_NUM_USERS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionCost:
    """Real milliseconds of decisions of one policy.

    Attributes:
        policy: As spelled.
        select: Of the policy's own answer.
        whole: Of the engine's question from end to end: who is where and may go where, the views, the answer, its check.
    """

    policy: str
    select: Quantiles
    whole: Quantiles


def measure_decisions(policies: Sequence[str], num_queued: int, num_decisions: int) -> list[DecisionCost]:
    """Ask each policy so many times; ``num_queued`` jobs wait, of which a queue shows the first ``WINDOW``."""
    records = make_records(num_queued)
    shown = records[: NUM_RESIDENT + WINDOW]
    return [_measure(policy, shown, num_decisions) for policy in policies]


def make_records(num_queued: int) -> list[JobRecord]:
    """Return the jobs of a queue under load: those resident first, half-way and timed, then those that wait."""
    random = Random(0)
    return [_make_record(number, random, is_resident=number < NUM_RESIDENT) for number in range(NUM_RESIDENT + num_queued)]


def _make_record(number: int, random: Random, *, is_resident: bool) -> JobRecord:
    recipe = {
        "name": f"job-{number:05d}", "user": f"user-{random.randrange(_NUM_USERS)}", "model": "m.umodel",
        "data": {"train": "t.pt"}, "loss": "MSELoss", "optimizer": "SGD", "max_steps": random.randint(100, 100_000),
        "batch_size": 1, "priority": random.randrange(5), "deadline_seconds": random.uniform(100, 100_000),
    }  # fmt: skip
    submission = Submission(
        spec=JobSpec.parse(recipe, asks_torch=False),
        folder=Path(),
        model=ModelRef(path=Path("m"), form=ModelForm.UMODEL, sha256="0"),
        train=DatasetRef(path=Path("t"), key="0", num_samples=100, nbytes=1, source="t.pt"),
        test=None,
        estimate=Estimate(
            num_parameters=random.randint(1000, 10**8), resident_bytes=1, peak_bytes=2, flops_per_step=1, num_ops_per_step=10
        ),
    )
    record = JobRecord(submission=submission, results=Path(), checkpoints=Path(), submit_time=float(number))
    record.trial_seconds[1] = random.uniform(0.001, 0.1)
    record.num_threads = 1
    if is_resident:
        record.slot, record.step, record.state = number % NUM_SLOTS, recipe["max_steps"] // 2, JobState.RUNNING
        record.first_start = record.waiting_since = float(number)
        record.slot_seconds = record.step * record.trial_seconds[1]
    return record


def _measure(policy: str, records: Sequence[JobRecord], num_decisions: int) -> DecisionCost:
    scheduler = create(policy)
    if isinstance(scheduler, Observes):
        for record in records:
            shares = ((record.user, 1.0),)
            scheduler.on_event(Submitted(unit_id=record.name, sequence=0, user_shares=shares))
            if record.slot is not None:
                turn = {"steps": record.step, "seconds": record.slot_seconds}
                scheduler.on_event(TurnDone(unit_id=record.name, sequence=1, user_shares=shares, **turn))
    ledger = Ledger()
    ledger.add_all(records)
    slots = [Slot(index=index, device="cpu", num_threads=1) for index in range(NUM_SLOTS)]
    decider = Decider(scheduler=scheduler, name=policy, clock=lambda: 1e6)
    units = [Unit(leader=record) for record in records]
    views = [unit.view() for unit in units]
    anywhere = frozenset(view.id for view in views if view.slot_id is None)
    slot_views = [SlotView(id=slot.index, accepts=anywhere) for slot in slots]
    select = _ask(lambda: scheduler.select(1e6, views, slot_views), num_decisions)
    whole = _ask(lambda: _decide(decider, units, ledger, slots), num_decisions)
    if decider.num_wrong:
        raise RuntimeError(f"scheduler {policy} gave {decider.num_wrong} answers that cannot be carried out")
    return DecisionCost(policy=policy, select=select, whole=whole)


def _decide(decider: Decider, units: Sequence[Unit], ledger: Ledger, slots: Sequence[Slot]) -> list[Grant]:
    """Decide as the engine does: who is where, who may go where, who has which turn."""
    placement = Placement(ledger=ledger, slots=slots, capacity_bytes=2**40, bans=set())
    queued = [tenant_of(unit.records) for unit in units if unit.slot is None]
    rules = Rules(capacity_bytes=placement.capacity_bytes)
    placements = plan(queued, placement.residents, placement.berths, rules, lambda: Outlook(ranks={}))
    return decider.select(units, placements, slots)


def _ask(question: Callable[[], object], count: int) -> Quantiles:
    """Return the milliseconds of so many answers, or of as many as there is patience for; of the first we learn nothing."""
    question()
    seconds: list[float] = []
    while len(seconds) < count and sum(seconds) < PATIENCE_SECONDS:
        began = perf_counter()
        question()
        seconds.append(perf_counter() - began)
    found = Quantiles.of(seconds)
    assert found is not None, "at least one answer was measured"
    return found.times(1000)
