"""A scheduling policy of one's own: whoever is nearest to the end goes first, an epoch at a time.

    python examples/own_scheduler.py

A policy decides and never acts: it is shown frozen views and answers with grants. From the command line it would be
``unified run … --scheduler own_scheduler:NearestToTheEnd``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

import unified
from schedulers.base import Epochs, Grant, JobView, SlotView


class NearestToTheEnd:
    """Grant one epoch to the unit with the fewest steps left."""

    needs = frozenset({"steps_total", "steps_done"})

    def select(self, now: float, ready: Sequence[JobView], slots: Sequence[SlotView]) -> list[Grant]:
        waiting = sorted(ready, key=lambda unit: (unit.steps_total - unit.steps_done, unit.submit_time, unit.id))
        grants = []
        for slot in slots:
            if slot.running is not None:
                continue
            for unit in waiting:
                may_be_placed = unit.slot_id is None and (slot.accepts is None or unit.id in slot.accepts)
                if unit.slot_id == slot.id or may_be_placed:
                    grants.append(Grant(unit_id=unit.id, slot_id=slot.id, quantum=Epochs(1)))
                    waiting.remove(unit)
                    break
        return grants


torch.manual_seed(0)
data = {"train": (torch.randn(256, 8), torch.randint(4, (256,)))}
jobs = [
    unified.JobSpec(
        name=f"{epochs}-epochs", model=nn.Linear(8, 4), data=data, loss="CrossEntropyLoss",
        optimizer={"name": "SGD", "lr": 0.1}, epochs=epochs, batch_size=16,
    )
    for epochs in (9, 3, 6)
]  # fmt: skip

with unified.Engine(scheduler=NearestToTheEnd(), slots=1) as engine:
    engine.submit_all(jobs)
    order = [result.name for result in engine.run()]
print("finished in this order:", ", ".join(order))
assert order == ["3-epochs", "6-epochs", "9-epochs"]
