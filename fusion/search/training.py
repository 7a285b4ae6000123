"""Distillation of fused models: what there is to train, and the trainer that takes them one by one (paper section 5.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from fusion.graph.tree import FusedTree

LossFunction = Callable[[Mapping[str, Any], "Batch"], Tensor]

CHECK_EVERY = 16
"""Steps between two looks at the losses; each look waits for the device."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hint:
    """What the output of a step should look like: a feature of the original model of a task, `(batch, …)`."""

    task: str
    target: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """What one step sees.

    Args:
        inputs: Flat raw inputs, each `(batch, …)`.
        targets: Per task every float tensor of the teacher's output, `(batch, …)`, in the output's order.
        known: Outputs of steps that need not run: features below a frozen prefix, by step name.
        hints: Features to be imitated on the way, by the step whose output they are for.
    """

    inputs: tuple[Tensor, ...]
    targets: Mapping[str, list[Tensor]]
    known: Mapping[str, Tensor] = field(default_factory=dict)
    hints: Mapping[str, Hint] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainUnit:
    """One candidate to be trained: a trainer changes its module and optimizer, and nothing else.

    Args:
        id: Names the candidate; with the seed and the step it decides every random number of its training.
        module: The fused model.
        optimizer: Over the module's trainable parameters, e.g. from `make_optimizer`. A group may have `starts_at`: its
            parameters rest (no gradient, modules in eval mode) before that step.
        batch: Batch of a step. Units with the same object see the same tensors, so a co-trainer may gather once for all.
        loss: From (outputs by task, batch) to the weighted loss per task `(tasks,)`; their sum is minimised. It is also
            given the outputs of the steps that have hints, by their names.
        first_step: Step to begin with; later rungs go on where the last one ended.
        schedule: Factor of the learning rates, by step.
        clip: Largest norm of all gradients together. None: not clipped.
    """

    id: str
    module: FusedTree
    optimizer: torch.optim.Optimizer
    batch: Callable[[int], Batch]
    loss: LossFunction
    first_step: int = 0
    schedule: Callable[[int], float] = lambda step: 1.0
    clip: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOutcome:
    """How the training of one unit ended.

    Args:
        id: The unit's.
        steps: Steps done in this call; on failure those before it.
        mean_losses: Mean over those steps of each entry of the loss; empty without a step.
        failure: None, or what went wrong. The weights of a failed unit mean nothing.
    """

    id: str
    steps: int
    mean_losses: tuple[float, ...]
    failure: str | None = None


class CoTrain(Protocol):
    """Trains several units for the same number of steps.

    Contract: outcomes in the order of the units; each unit ends with the weights it would have alone (bitwise side by side
    on a CPU); a NaN or exception in one unit is that unit's outcome only; no unit's random numbers depend on its company.
    """

    def __call__(self, units: Sequence[TrainUnit], *, steps: int, seed: int) -> Sequence[TrainOutcome]:
        """Train each unit from its `first_step` on, for `steps` steps."""
        ...


def train_one_by_one(units: Sequence[TrainUnit], *, steps: int, seed: int) -> list[TrainOutcome]:
    """Train units one after the other: the default `CoTrain`, and the reference for others.

    Args:
        units: What to train, in place.
        steps: Steps for each, >= 0.
        seed: With a unit's id and the step it seeds dropout and the like.
    """
    return [_train(unit, steps=steps, seed=seed) for unit in units]


def begin_step(unit: TrainUnit, step: int) -> None:
    """Set learning rates, and which parameters take part, to what they are at a step: a function of the step alone."""
    factor = unit.schedule(step)
    for group in unit.optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    _rest(unit, until=step)


def train_unfrozen(tree: FusedTree) -> None:
    """Set train mode, but leave steps in eval mode whose parameters are all frozen: their buffers must not move either."""
    tree.train()
    for step in tree.nodes.values():
        parameters = list(step.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            step.eval()


def do_step(unit: TrainUnit, step: int) -> Tensor:
    """Do one step of plain training; returns the detached loss per task, without waiting for the device."""
    begin_step(unit, step)
    batch = unit.batch(step)
    unit.optimizer.zero_grad(set_to_none=True)
    with outputs_of(unit.module, batch.hints) as features:
        outputs = unit.module.run(batch.inputs, known=batch.known)
    losses = unit.loss({**outputs, **features}, batch)
    losses.sum().backward()
    if unit.clip is not None:
        parameters = [parameter for group in unit.optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, unit.clip)
    unit.optimizer.step()
    return losses.detach().reshape(-1)


@contextmanager
def outputs_of(tree: FusedTree, steps: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Listen to some steps: what they return while this lasts is put into the yielded dict, by their names."""
    heard: dict[str, Tensor] = {}
    handles = [
        tree.nodes[name].register_forward_hook(lambda _module, _inputs, output, name=name: heard.__setitem__(name, output))
        for name in steps
    ]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def step_seed(seed: int, unit_id: str, step: int) -> int:
    """Derive the seed of one unit's random numbers in one step: 63 bits, the same in every process."""
    text = f"{seed}|{unit_id}|{step}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@contextmanager
def own_random_numbers(module: nn.Module) -> Iterator[Callable[[int], None]]:
    """Lend the default generators (dropout draws from nothing else) and put them back; yields the function to seed them."""
    indices = sorted({p.device.index for p in module.parameters() if p.device.type == "cuda"})
    generators = [torch.default_generator, *(torch.cuda.default_generators[index] for index in indices)]
    states = [generator.get_state() for generator in generators]

    def reseed(seed: int) -> None:
        for generator in generators:
            generator.manual_seed(seed)

    try:
        yield reseed
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _train(unit: TrainUnit, *, steps: int, seed: int) -> TrainOutcome:
    losses: list[Tensor] = []
    failure = None
    train_unfrozen(unit.module)
    with own_random_numbers(unit.module) as reseed:
        try:
            for step in range(unit.first_step, unit.first_step + steps):
                reseed(step_seed(seed, unit.id, step))
                losses.append(do_step(unit, step))
                if len(losses) % CHECK_EVERY == 0 and not all_finite(losses[-CHECK_EVERY:]):
                    break
        except Exception as error:  # noqa: BLE001 - whatever one candidate does wrong must not end the others
            failure = f"{type(error).__name__}: {error}"
    end_steps(unit)
    return outcome_of(unit, losses, failure)


def outcome_of(unit: TrainUnit, losses: list[Tensor], failure: str | None) -> TrainOutcome:
    """Say how training ended, from the losses of its steps and what stopped it."""
    table = torch.stack(losses).double().cpu() if losses else torch.zeros(0, 1)
    good = table.isfinite().all(dim=1)
    steps = len(losses) if good.all() else int(good.logical_not().nonzero()[0])
    if steps < len(losses):
        failure = f"the loss of step {unit.first_step + steps} is not finite"
    elif failure is None and not all_finite(list(unit.module.parameters())):
        failure = f"weights are not finite after step {unit.first_step + steps - 1}"
    means = tuple(table[:steps].mean(dim=0).tolist()) if steps else ()
    return TrainOutcome(id=unit.id, steps=steps, mean_losses=means, failure=failure)


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity; waits for the device."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def end_steps(unit: TrainUnit) -> None:
    """Let all groups take part again, and give up gradients: those of many candidates would fill the memory."""
    _rest(unit, until=None)
    unit.optimizer.zero_grad(set_to_none=True)


def _rest(unit: TrainUnit, *, until: int | None) -> None:
    """Let groups rest that start after a step, and wake the others; those without `starts_at` are never touched."""
    changed = False
    for group in unit.optimizer.param_groups:
        start = group.get("starts_at", 0)
        takes_part = until is None or until >= start
        for parameter in group["params"] if start else ():
            changed |= parameter.requires_grad != takes_part
            parameter.requires_grad_(takes_part)
    if changed:
        train_unfrozen(unit.module)
