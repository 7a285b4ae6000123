"""Candidates trained side by side: step by step in turns, one gathered batch and one pass through what they share for all.

The contract is that of :class:`fusion.search.training.CoTrain`: each candidate ends with the very weights that it would have
alone, bit for bit on a CPU, and its failure is its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fusion.graph.tree import FusedTree
from fusion.search import training
from fusion.search.hashing import hash_tensors, tensors_of
from fusion.search.training import Batch, TrainOutcome, TrainUnit
from unified.hybrid import HybridModule
from unified.random_state import RandomState, preserved_random_state


def co_train(units: Sequence[TrainUnit], *, steps: int, seed: int) -> list[TrainOutcome]:
    """Train candidates for the same number of steps, in turns of one step.

    What they share is computed once: a batch for units with the same ``batch`` object, and within it the features behind
    blocks that rest (no gradient, evaluation mode) and hold the same weights in several of them. That costs memory for all
    candidates at once: their weights, gradients and optimizer states, and the activations of one.

    Args:
        units: What to train, in place; ids are unique.
        steps: Steps for each, >= 0.
        seed: With a unit's id and the step it seeds dropout and the like.

    Returns:
        How each ended, in the order of the units.
    """
    hybrid = HybridModule()
    runs = [_Run(unit=unit) for unit in units]
    for run in runs:
        hybrid.add(run.unit.id, run.unit.module)
        training.train_unfrozen(run.unit.module)
    with ExitStack() as stack:
        for device in _devices(units):
            stack.enter_context(preserved_random_state(device))
        for number in range(steps):
            for run in runs:
                _begin(run, run.unit.first_step + number)
            shared = _Shared(runs=tuple(run for run in runs if run.is_live))
            for run in shared.runs:
                _step(run, run.unit.first_step + number, seed, shared)
    for run in runs:
        hybrid.drop(run.unit.id)
        training.end_steps(run.unit)
    return [training.outcome_of(run.unit, run.losses, run.failure) for run in runs]


@dataclass(slots=True, kw_only=True, eq=False)
class _Run:
    """A unit on its way.

    Attributes:
        losses: Of each step, on the unit's device.
        failure: Why it stopped, or None.
        is_live: Whether it goes on.
        resting: Steps of its tree whose output cannot change now, with a hash of all that makes it.
        trainable: Which of its parameters are trained now.
    """

    unit: TrainUnit
    losses: list[Tensor] = field(default_factory=list)
    failure: str | None = None
    is_live: bool = True
    resting: Mapping[str, str] = field(default_factory=dict)
    trainable: tuple[bool, ...] = ()

    def fail(self, error: Exception) -> None:
        """Train it no further."""
        self.failure = f"{type(error).__name__}: {error}"
        self.is_live = False


def _begin(run: _Run, step: int) -> None:
    """Let a unit's blocks rest or wake up, and see which of their outputs cannot change."""
    if not run.is_live:
        return
    try:
        training.begin_step(run.unit, step)
    except Exception as error:  # noqa: BLE001 - its schedule may be anybody's
        run.fail(error)
        return
    trainable = tuple(parameter.requires_grad for parameter in run.unit.module.parameters())
    if run.trainable != trainable:
        run.trainable = trainable
        run.resting = _resting_prefix(run.unit.module)


def _step(run: _Run, step: int, seed: int, shared: _Shared) -> None:
    """Do one step of one unit; whatever it raises ends here."""
    unit = run.unit
    device = _device(unit.module)
    RandomState.seeded(training.step_seed(seed, unit.id, step), device).restore()
    try:
        run.losses.append(training.do_step(replace(unit, batch=lambda number: shared.batch(run, number)), step))
        if len(run.losses) % training.CHECK_EVERY == 0:
            run.is_live = training.all_finite(run.losses[-training.CHECK_EVERY :])
    except Exception as error:  # noqa: BLE001 - whatever one candidate does wrong must not end the others
        run.fail(error)


@dataclass(slots=True, kw_only=True, eq=False)
class _Shared:
    """What units have in common in one round of steps: each thing is computed by the first that needs it."""

    runs: tuple[_Run, ...]
    batches: dict[tuple[int, int], Batch] = field(default_factory=dict)
    features: dict[tuple[object, ...], Tensor] = field(default_factory=dict)

    def batch(self, run: _Run, step: int) -> Batch:
        """Return the batch of a unit's step, with the features that it need not compute."""
        gathered = id(run.unit.batch), step
        if gathered not in self.batches:
            self.batches[gathered] = run.unit.batch(step)
        batch = self.batches[gathered]
        known = self._known(run, batch, gathered)
        return replace(batch, known={**batch.known, **known}) if known else batch

    def _known(self, run: _Run, batch: Batch, gathered: tuple[int, int]) -> dict[str, Tensor]:
        """Return features behind resting blocks that another unit needs too."""
        theirs = {
            chain
            for other in self.runs
            if other is not run and other.unit.batch is run.unit.batch
            for chain in other.resting.values()
        }
        common = {name: chain for name, chain in run.resting.items() if chain in theirs and name not in batch.known}
        ends = _ends(run.unit.module, common)
        keys = {name: (*gathered, common[name]) for name in ends}
        if any(key not in self.features for key in keys.values()):
            computed = _features(run.unit.module, batch, ends)
            self.features |= {keys[name]: value for name, value in computed.items()}
        return {name: self.features[key] for name, key in keys.items() if key in self.features}


def _resting_prefix(module: FusedTree) -> dict[str, str]:
    """Return the steps whose output cannot change while a unit trains, with a hash of all that makes it.

    They begin at the input, hold weights of which none is trained, and are in evaluation mode.
    """
    chains: dict[str, str] = {}
    for step in module.steps:
        node = module.nodes[step.name]
        if (step.source is None or step.source in chains) and _rests(node):
            before = "" if step.source is None else chains[step.source]
            chains[step.name] = f"{before}/{step.name}:{hash_tensors(tensors_of(node).items())}"
    return chains


def _rests(node: torch.nn.Module) -> bool:
    parameters = list(node.parameters())
    return bool(parameters) and not node.training and not any(parameter.requires_grad for parameter in parameters)


def _ends(module: FusedTree, steps: Mapping[str, str]) -> list[str]:
    """Return those of ``steps`` whose output is taken by a step beyond them, or is that of a task."""
    taken = {step.source for step in module.steps if step.name not in steps}
    return [step.name for step in module.steps if step.name in steps and (step.name in taken or step.task is not None)]


def _features(module: FusedTree, batch: Batch, ends: Sequence[str]) -> dict[str, Tensor]:
    """Compute the outputs of steps; nothing if one of them draws random numbers, which are its unit's own."""
    if not ends:
        return {}
    before = RandomState.capture(_device(module))
    with torch.no_grad():
        found = _run_to(module, batch, ends)
    after = RandomState.capture(_device(module))
    if all(torch.equal(one, after.state_dict()[name]) for name, one in before.state_dict().items()):
        return found
    before.restore()
    return {}


def _run_to(module: FusedTree, batch: Batch, ends: Sequence[str]) -> dict[str, Tensor]:
    """Run the steps that lead to ``ends`` and return the outputs of those."""
    sources = {step.name: step.source for step in module.steps}
    needed: set[str] = set()
    for end in ends:
        name: str | None = end
        while name is not None and name not in needed and name not in batch.known:
            needed.add(name)
            name = sources[name]
    values = dict(batch.known)
    for step in module.steps:
        if step.name in needed:
            x = batch.inputs[module.signature.primary] if step.source is None else values[step.source]
            values[step.name] = module.nodes[step.name](x, *(batch.inputs[position] for position in step.needs))
    return {name: values[name] for name in ends}


def _device(module: torch.nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _devices(units: Sequence[TrainUnit]) -> Iterator[torch.device]:
    yield torch.device("cpu")
    yield from {device for unit in units if (device := _device(unit.module)).type == "cuda"}
