"""What every trainer of fused models must keep, whoever wrote it: run these checks on a `CoTrain`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fusion.graph.tree import FusedTree
from fusion.search.batch_order import BatchOrder
from fusion.search.data import Part
from fusion.search.losses import distillation_loss
from fusion.search.optimizing import Rates, WarmUpCosine, make_optimizer
from fusion.search.teachers import TeacherCache
from fusion.search.training import Batch, CoTrain, TrainOutcome, TrainUnit
from tests.unit.fusion_models import chains, samples, shared

BATCH = 8


class Lesson:
    """Two models, their data, and units that learn from them."""

    def __init__(self, *, dropout: float = 0.3, dtype: torch.dtype = torch.float32) -> None:
        self.models = [model.to(dtype) for model in chains(dropout=dropout)]
        self.part = Part(inputs=samples(40).to(dtype))
        self.cache = TeacherCache(self.models)
        self.order = BatchOrder(num_samples=40, batch_size=BATCH, seed=5)
        self.loss = partial(distillation_loss, self.cache.loss_weights(self.part))

    def batch(self, step: int) -> Batch:
        return self.cache.batch(self.part, self.order(step))

    def unit(self, name: str, *, adapters_alone: int = 3, tree: FusedTree | None = None, **changes: object) -> TrainUnit:
        tree = tree or shared(self.models, adapter_seed=len(name) + ord(name[0]))
        rates = Rates(blocks=3e-3, adapters=1e-2, adapters_alone=adapters_alone)
        settings = {
            "id": name,
            "module": tree,
            "optimizer": make_optimizer(tree, rates),
            "batch": self.batch,
            "loss": self.loss,
            "schedule": WarmUpCosine(steps=12, warm_up=2),
        }
        return TrainUnit(**(settings | changes))


def weights_of(unit: TrainUnit) -> dict[str, Tensor]:
    return copy.deepcopy(unit.module.state_dict())


def assert_same_weights(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def ends_as_alone(cotrain: CoTrain, steps: int = 10) -> None:
    """Each unit ends with the weights and losses it would have alone, bit for bit, in whatever order and company."""
    lesson = Lesson()
    alone: dict[str, tuple[TrainOutcome, dict[str, Tensor]]] = {}
    for name in "abc":
        unit = lesson.unit(name)
        [outcome] = cotrain([unit], steps=steps, seed=7)
        alone[name] = outcome, weights_of(unit)
    assert_different(alone["a"][1], alone["b"][1])
    units = [lesson.unit(name) for name in "cab"]
    outcomes = cotrain(units, steps=steps, seed=7)
    assert [outcome.id for outcome in outcomes] == ["c", "a", "b"]
    for unit, outcome in zip(units, outcomes, strict=True):
        assert outcome == alone[unit.id][0]
        assert (outcome.steps, outcome.failure, len(outcome.mean_losses)) == (steps, None, 2)
        assert_same_weights(weights_of(unit), alone[unit.id][1])


def assert_different(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert any(not torch.equal(first[name], second[name]) for name in first.keys() & second.keys())


def failures_stay_at_home(cotrain: CoTrain) -> None:
    """A unit that raises, or whose loss or weights are no numbers, is reported; the others never notice."""
    lesson = Lesson()
    healthy = lesson.unit("a")
    cotrain([healthy], steps=20, seed=7)
    expected = weights_of(healthy)

    def raises(step: int) -> Batch:
        if step == 4:
            raise RuntimeError("no such sample")
        return lesson.batch(step)

    def no_number(outputs: object, batch: Batch) -> Tensor:
        return lesson.loss(outputs, batch) * (float("nan") if batch is poisoned else 1.0)

    batches = [lesson.batch(step) for step in range(20)]
    poisoned = batches[6]
    units = [
        lesson.unit("raises", batch=raises),
        lesson.unit("a"),
        lesson.unit("no number", batch=batches.__getitem__, loss=no_number),
        lesson.unit("b"),
    ]
    outcomes = cotrain(units, steps=20, seed=7)
    assert [outcome.steps for outcome in outcomes] == [4, 20, 6, 20]
    assert outcomes[0].failure is not None
    assert "no such sample" in outcomes[0].failure
    assert outcomes[2].failure is not None
    assert "loss of step 6 is not finite" in outcomes[2].failure
    assert all(torch.tensor(outcome.mean_losses).isfinite().all() for outcome in outcomes)
    assert outcomes[1].failure is None
    assert_same_weights(weights_of(units[1]), expected)


def goes_on_where_it_stopped(cotrain: CoTrain) -> None:
    """Rungs one after the other give what one training gives, the phase of adapters alone included."""
    lesson = Lesson()
    whole, parts = lesson.unit("a"), lesson.unit("a")
    cotrain([whole], steps=10, seed=7)
    for first, steps in ((0, 2), (2, 5), (7, 3)):
        parts.module.eval()  # as after a look at the validation part
        cotrain([replace(parts, first_step=first)], steps=steps, seed=7)
    assert_same_weights(weights_of(parts), weights_of(whole))


def leaves_the_global_generator_alone(cotrain: CoTrain) -> None:
    """Nobody else's random numbers change, and nobody else's change the training."""
    lesson = Lesson()
    found = []
    for state in (1, 2):
        unit = lesson.unit("a")
        torch.manual_seed(state)
        before = torch.get_rng_state()
        cotrain([unit], steps=5, seed=7)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(weights_of(unit))
    assert_same_weights(*found)
    other = lesson.unit("a")
    cotrain([other], steps=5, seed=8)
    assert_different(found[0], weights_of(other))


def no_steps_change_nothing(cotrain: CoTrain) -> None:
    """Zero steps, or no unit at all, are fine."""
    unit = Lesson().unit("a")
    before = weights_of(unit)
    assert list(cotrain([unit], steps=0, seed=7)) == [TrainOutcome(id="a", steps=0, mean_losses=())]
    assert_same_weights(weights_of(unit), before)
    assert list(cotrain([], steps=3, seed=7)) == []


CONTRACT: Sequence[Callable[[CoTrain], None]] = (
    ends_as_alone,
    failures_stay_at_home,
    goes_on_where_it_stopped,
    leaves_the_global_generator_alone,
    no_steps_change_nothing,
)
