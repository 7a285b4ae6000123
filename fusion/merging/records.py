"""What a report of a merge holds, as values that can be written as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fusion.merging.gains import Combination, Gains
from fusion.timer import Timing

OURS, ALONE, ZIPPED, ORIGINAL = "PAM", "B1", "B2", "original"
TITLES = {
    ORIGINAL: "the original networks",
    ALONE: "B1: pruned alone",
    ZIPPED: "B2: zipped, then pruned",
    OURS: "PAM: merged, then pruned",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CombinationRecord:
    """What running some tasks comes to.

    Attributes:
        tasks: Those that are run.
        score: Mean of their scores, 1 at best.
        flops: For one sample.
        latency: Of a forward pass, as specialised modules; None if it was not measured.
    """

    tasks: Combination
    score: float
    flops: int
    latency: Timing | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """What a round of pruning came to; see :class:`fusion.merging.pruning.RoundDone`.

    Attributes:
        network: The tasks of the network that was pruned.
        number: From 0, which is the network before.
        scores: On validation data.
        flops: By combination of its tasks.
        is_feasible: Whether all tasks were good enough.
        seconds: Since its pruning began.
    """

    network: Combination
    number: int
    scores: Mapping[str, float]
    flops: Mapping[Combination, int]
    is_feasible: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeRecord:
    """One way of answering the tasks: PAM, B1 (each network pruned alone), B2 (zipped, then pruned), or the networks given.

    Attributes:
        name: Of it.
        scores: By task, on held-out data where there are some, else on those for validation.
        validation: By task, on validation data.
        combinations: Single tasks first.
        parameters: Numbers that are stored.
        rounds: Of its pruning.
        is_feasible: Whether every task is good enough on validation data.
    """

    name: str
    scores: Mapping[str, float]
    validation: Mapping[str, float]
    combinations: tuple[CombinationRecord, ...]
    parameters: int
    rounds: tuple[RoundRecord, ...]
    is_feasible: bool

    @property
    def flops(self) -> dict[Combination, int]:
        """By combination, for one sample."""
        return {record.tasks: record.flops for record in self.combinations}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """A layer of neurons of the merged network.

    Attributes:
        name: Of the first operator that makes its neurons.
        before: Neurons of each network given.
        sizes: Live neurons by the tasks that they serve.
    """

    name: str
    before: Mapping[str, int]
    sizes: Mapping[Combination, int]

    @property
    def live(self) -> int:
        """Neurons that are left."""
        return sum(self.sizes.values())

    @property
    def shared(self) -> int:
        """Those of them that serve several tasks."""
        return sum(size for tasks, size in self.sizes.items() if len(tasks) > 1)

    @property
    def sharing(self) -> float:
        """Their share (PAM, figure 6); 0 of none."""
        return self.shared / self.live if self.live else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveRecord:
    """How information grows with the set of neurons that tell least about other tasks (PAM, appendix C).

    Attributes:
        layer: Its name.
        tasks: Which the neurons are for.
        information: Estimate after each neuron, in nats.
        null: Mean estimate of the same set for shuffled labels.
        value: What is compared with the threshold.
        total: Of all neurons of the layer less the null.
        entropy: Mean entropy of the other tasks' labels.
        s2: Variance of the estimator's noise.
        threshold: In nats; None without one.
    """

    layer: str
    tasks: Combination
    information: tuple[float, ...]
    null: tuple[float, ...]
    value: tuple[float, ...]
    total: float
    entropy: float
    s2: float
    threshold: float | None

    @property
    def num_chosen(self) -> int | None:
        """Neurons within the threshold; None without one."""
        return None if self.threshold is None else sum(value <= self.threshold for value in self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaRecord:
    """What one alpha led to, where several were tried.

    Attributes:
        alpha: In the unit of the settings.
        flops: By combination, after pruning.
        scores: On validation data.
        cost: Weighted FLOPs by which alphas are compared.
        is_feasible: Whether every task was good enough.
    """

    alpha: float
    flops: Mapping[Combination, int]
    scores: Mapping[str, float]
    cost: float
    is_feasible: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """What a merge came to.

    Attributes:
        tasks: In their order.
        schemes: By name: the networks given, PAM, and the baselines that were asked for.
        gains: Of PAM over every other scheme, in FLOPs.
        layers: Of PAM's network, in the order of execution.
        curves: Of the estimator.
        alpha: That of the result.
        alphas: All that were tried; empty if it was given.
        floors: The least score of each task on validation data.
        is_held_out: Whether scores are of data that nothing was chosen by.
        latency_batch: Samples of a measured forward pass; 0 if none was measured.
        settings: What was asked for.
        environment: Versions, device and threads.
        notes: What a reader should know.
        seconds: That it all took.
    """

    tasks: tuple[str, ...]
    schemes: Mapping[str, SchemeRecord]
    gains: Mapping[str, Gains]
    layers: tuple[LayerRecord, ...]
    curves: tuple[CurveRecord, ...] = ()
    alpha: float
    alphas: tuple[AlphaRecord, ...] = ()
    floors: Mapping[str, float]
    is_held_out: bool
    latency_batch: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as strict JSON data: combinations are ``"A+B"``, what is not finite is null."""
        content = {name: plain(getattr(self, name)) for name in self.__slots__}
        for layer, record in zip(content["layers"], self.layers, strict=True):
            layer |= {"live": record.live, "shared": record.shared, "sharing": record.sharing}
        for curve, record in zip(content["curves"], self.curves, strict=True):
            curve["num_chosen"] = record.num_chosen
        return content


def joined(tasks: Combination) -> str:
    """Name a combination.

    >>> joined(("A", "B"))
    'A+B'
    """
    return "+".join(tasks)


def plain(value: Any) -> Any:
    """Return values, records, mappings by combination and sequences as strict JSON data; what is not finite is None.

    >>> plain({("A", "B"): [1, math.inf]})
    {'A+B': [1, None]}
    """
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {joined(key) if isinstance(key, tuple) else str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
