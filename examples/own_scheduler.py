"""A scheduling policy of one's own: each turn is drawn by lot, with chances by weight.

    python examples/own_scheduler.py

A policy decides and never acts, and asked twice it answers the same: so the draws come from a seed and a counter,
and only events move the counter on. Under the laws: ``pytest --scheduler=examples.own_scheduler:Lottery``. From the
command line: ``PYTHONPATH=examples unified run … --scheduler own_scheduler:Lottery:seed=7``.
"""

from __future__ import annotations

import math
import random

from schedulers.base import Event, JobView, Quantum, TurnCut, TurnDone
from schedulers.keyed import KeyPolicy
from schedulers.memory import Sequences
from schedulers.quanta import parse_quantum


class Lottery(KeyPolicy):
    """Lottery scheduling (Waldspurger and Weihl, 1994): of two units, the one of twice the weight wins twice as often."""

    needs = frozenset({"weight"})

    def __init__(self, seed: str = "0", quantum: str = "1epoch") -> None:
        self._seed, self._quantum = seed, parse_quantum(quantum)
        self._draw, self._sequences = 0, Sequences()

    def key(self, unit: JobView, now: float) -> tuple[float, ...]:
        luck = random.Random(f"{self._seed}/{self._draw}/{unit.id}").random()
        return (-math.log(1.0 - luck) / unit.weight,)

    def quantum_of(self, unit: JobView) -> Quantum:
        return self._quantum

    def explain(self, unit: JobView, now: float) -> str:
        return f"its lot in draw {self._draw} is {self.key(unit, now)[0]:.4g} at weight {unit.weight:g}; the least wins"

    def on_event(self, event: Event) -> None:
        if self._sequences.is_news(event) and isinstance(event, TurnDone | TurnCut):
            self._draw += 1

    def state_dict(self) -> dict[str, object]:
        return {"draw": self._draw, "sequences": self._sequences.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self._draw = state["draw"]
        self._sequences.load_state_dict(state["sequences"])


def main() -> None:
    import torch  # here: the policy itself needs neither

    import unified

    torch.manual_seed(0)
    samples = {"train": (torch.randn(256, 8), torch.randint(4, (256,)))}
    jobs = [
        unified.JobSpec(
            name=f"weight-{weight}", model=torch.nn.Linear(8, 4), data=samples, loss="CrossEntropyLoss", weight=weight,
            optimizer={"name": "SGD", "lr": 0.1}, epochs=5, batch_size=16,
        )
        for weight in (1, 10, 100)
    ]  # fmt: skip
    with unified.Engine(scheduler=Lottery(), slots=1) as engine:
        engine.submit_all(jobs)
        order = [result.name for result in engine.run()]
    print("finished in this order:", ", ".join(order))
    assert sorted(order) == ["weight-1", "weight-10", "weight-100"]


if __name__ == "__main__":
    main()
