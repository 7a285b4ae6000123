"""A candidate from its graph to something that can be trained: weights inherited, adapters started, statistics renewed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from fusion.graph.tree import FusedTree
from fusion.search.absgraph import Graph, capacities
from fusion.search.averaging import Average
from fusion.search.build import build
from fusion.search.front import Point
from fusion.search.losses import distillation_loss
from fusion.search.optimizing import Rates, WarmUpCosine, make_optimizer
from fusion.search.policy import Proposal
from fusion.search.recalibrate import affected_steps, recalibrate
from fusion.search.setting import Setting
from fusion.search.soft_loss import class_outputs, soft_loss
from fusion.search.start import Origin, start
from fusion.search.teachers import Boundary
from fusion.search.training import Batch, LossFunction, TrainUnit

NUM_RECALIBRATION_BATCHES = 4


@dataclass(slots=True, kw_only=True, eq=False)
class Trial:
    """A candidate while it is trained.

    Attributes:
        number: From 1.
        proposal: Where it comes from.
        key: Of its graph.
        cost: Predicted, in the search's metric.
        parameters: Number of them.
        unit: What a trainer gets.
        average: Of its weights, or None.
        points: How it stood whenever it was looked at.
        status: ``running``, ``accepted``, ``failed`` (after its full training), ``unknown`` (ended early).
        why: What ended it.
        epochs: Passes so far.
        given_up: Epoch and reason of the first time that a filter would have ended it, where it is trained all the same.
        is_audited: Whether it is.
    """

    number: int
    proposal: Proposal
    key: str
    cost: float
    parameters: int
    unit: TrainUnit
    average: Average | None
    points: list[Point] = field(default_factory=list)
    status: str = "running"
    why: str = ""
    epochs: int = 0
    given_up: list[float | str] | None = None
    is_audited: bool = False

    @property
    def graph(self) -> Graph:
        """Its graph."""
        return self.proposal.graph

    @property
    def tree(self) -> FusedTree:
        """Its module."""
        return self.unit.module

    def end(self, status: str, why: str) -> None:
        """Say how it ended."""
        self.status, self.why = status, why

    def give_up(self, why: str) -> None:
        """End it before its training is over, as far as can be said now; under audit only remember that."""
        if self.is_audited:
            self.given_up = self.given_up or [self.epochs, why]
        else:
            self.end("unknown", why)


class Base:
    """What candidates are mutated from: a graph and its weights, and the module of both.

    Args:
        setting: What the search stands on.
        graph: The graph.
        weights: State dict of its tree; None for the weights of the models handed in.
    """

    def __init__(self, setting: Setting, graph: Graph, weights: Mapping[str, Tensor] | None) -> None:
        self.graph = graph
        self.weights = weights
        tree = build(graph, setting.sequences, seed=setting.config.seed, weights=weights).to(setting.device)
        self.origin = Origin(tree, graph, setting.sample)


def make_trial(setting: Setting, proposal: Proposal, base: Base, *, number: int, batches: Batches) -> Trial:
    """Build a candidate's module and make it ready to be trained.

    Args:
        setting: What the search stands on.
        proposal: Its graph.
        base: What it was mutated from.
        number: From 1; with the seed it decides every draw.
        batches: Shared by all candidates of a search.
    """
    config, graph = setting.config, proposal.graph
    seed = config.seed * 100_003 + number
    tree = build(graph, setting.sequences, seed=seed, weights=base.weights).to(setting.device)
    if config.adapter_start == "least-squares":
        start(tree, graph, base.origin)
        recalibrate(tree, [batches(step).inputs for step in range(NUM_RECALIBRATION_BATCHES)])
    resting = _resting(tree) if config.rest_epochs else frozenset()
    rates = _rates(setting, resting)
    known = _known(setting, tree, resting)
    tree.is_still = config.is_still
    optimizer = make_optimizer(tree, rates)
    unit = TrainUnit(
        id=f"candidate {number}",
        module=tree,
        optimizer=optimizer,
        batch=batches.of(known, until=rates.rest_until),
        loss=_loss(setting),
        schedule=_schedule(setting),
    )
    return Trial(
        number=number,
        proposal=proposal,
        key=graph.key(),
        cost=setting.cost(graph),
        parameters=capacities(graph).total,
        unit=unit,
        average=Average(tree, optimizer) if config.averages else None,
        is_audited=config.audit,
    )


def _loss(setting: Setting) -> LossFunction:
    part = setting.data.train
    weights = setting.teachers.loss_weights(part)
    if setting.config.loss == "l1":
        return partial(distillation_loss, weights)
    return partial(soft_loss, weights, class_outputs(setting.tasks, setting.teachers, part))


def _resting(tree: FusedTree) -> frozenset[str]:
    """Return the blocks that are given what they were given before the mutation; none if that is all of them."""
    affected = affected_steps(tree)
    resting = frozenset(step.name for step in tree.steps if step.name not in affected)
    return resting if affected else frozenset()


def _rates(setting: Setting, resting: frozenset[str]) -> Rates:
    config, per_epoch = setting.config, setting.order.steps_per_epoch
    return Rates(
        blocks=setting.lr * config.lr_factor,
        adapters=setting.lr * config.adapter_lr_factor,
        adapters_alone=per_epoch // 8 if config.adapter_start == "least-squares" else 0,
        resting=resting,
        rest_until=config.rest_epochs * per_epoch if resting else 0,
    )


def _known(setting: Setting, tree: FusedTree, resting: frozenset[str]) -> dict[str, Boundary]:
    """Return the steps whose output is a model's own feature as long as the resting ones rest."""
    if not resting:
        return {}
    tree.freeze(resting)
    try:
        return setting.teachers.known_steps(tree)
    finally:
        tree.freeze(())


class Batches:
    """The batch of a step, gathered once for all candidates that are trained side by side."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._last: tuple[int, Batch] | None = None
        self._features: dict[Boundary, Tensor] = {}

    def __call__(self, step: int) -> Batch:
        """Return what a step sees, without features."""
        if self._last is None or self._last[0] != step:
            setting = self._setting
            self._last = step, setting.teachers.batch(setting.data.train, setting.order(step), device=setting.device)
            self._features = {}
        return self._last[1]

    def of(self, known: Mapping[str, Boundary], *, until: int) -> Callable[[int], Batch]:
        """Return the batches of a candidate that is given features in place of steps, before the step ``until``."""
        if not known:
            return self

        def batch(step: int) -> Batch:
            common = self(step)
            if step >= until:
                return common
            return replace(common, known={name: self._feature(boundary, step) for name, boundary in known.items()})

        return batch

    def _feature(self, boundary: Boundary, step: int) -> Tensor:
        if boundary not in self._features:
            setting = self._setting
            [rows] = setting.teachers.features(setting.data.train, boundary)
            self._features[boundary] = rows.gather(setting.order(step)).to(setting.device).float()
        return self._features[boundary]


def _schedule(setting: Setting) -> WarmUpCosine:
    steps = setting.config.epochs * setting.order.steps_per_epoch
    return WarmUpCosine(steps=steps, warm_up=min(20, steps // 10))
