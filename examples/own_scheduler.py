"""A scheduling policy of one's own: whoever is nearest to the end goes first, an epoch at a time.

    python examples/own_scheduler.py

A policy decides and never acts: it is shown frozen views and answers with grants. From the command line:
``PYTHONPATH=examples unified run … --scheduler own_scheduler:NearestToTheEnd``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

import unified
from schedulers.base import Epochs, Grant, JobView, SlotView
from schedulers.ordering import by_key


class NearestToTheEnd:
    """Grant one epoch to the unit with the fewest steps left."""

    needs = frozenset({"steps_total", "steps_done"})

    def select(self, now: float, ready: Sequence[JobView], slots: Sequence[SlotView]) -> list[Grant]:
        return by_key(ready, slots, key=lambda unit: (unit.steps_total - unit.steps_done,), quantum=Epochs(1))


def job(epochs: int, data: dict[str, object]) -> unified.JobSpec:
    return unified.JobSpec(
        name=f"{epochs}-epochs", model=nn.Linear(8, 4), data=data, loss="CrossEntropyLoss",
        optimizer={"name": "SGD", "lr": 0.1}, epochs=epochs, batch_size=16,
    )  # fmt: skip


if __name__ == "__main__":
    torch.manual_seed(0)
    samples = {"train": (torch.randn(256, 8), torch.randint(4, (256,)))}
    with unified.Engine(scheduler=NearestToTheEnd(), slots=1) as engine:
        engine.submit_all([job(epochs, samples) for epochs in (9, 3, 6)])
        order = [result.name for result in engine.run()]
    print("finished in this order:", ", ".join(order))
    assert order == ["3-epochs", "6-epochs", "9-epochs"]
