"""What a merge tells of itself while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fusion.merging.gains import Combination


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The networks have been read and put together.

    Attributes:
        tasks: In their order.
        scores: Of the networks given, on validation data.
        floors: The least that each task may score there.
        flops: Of the networks given, side by side.
        layers: Layers of neurons that can be shared.
        notes: Where and why networks do not correspond.
    """

    tasks: tuple[str, ...]
    scores: Mapping[str, float]
    floors: Mapping[str, float]
    flops: int
    layers: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBegan:
    """Something that takes a while begins.

    Attributes:
        what: In words.
        number: Of the stage, from 1.
        num_stages: Of all.
        seconds: Since the merge began.
    """

    what: str
    number: int
    num_stages: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEnded:
    """A round of pruning.

    Attributes:
        scheme: ``PAM``, ``B1`` or ``B2``.
        network: Tasks of the network that is pruned.
        number: From 0, which is the network before.
        scores: On validation data.
        flops: By combination of its tasks.
        is_feasible: Whether all tasks are good enough; else the round is undone.
        seconds: Since the merge began.
    """

    scheme: str
    network: Combination
    number: int
    scores: Mapping[str, float]
    flops: Mapping[Combination, int]
    is_feasible: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaTried:
    """The network of one alpha is pruned.

    Attributes:
        alpha: As fraction of what a layer tells.
        flops: By combination.
        scores: On validation data.
        cost: By which alphas are compared.
        is_feasible: Whether all tasks are good enough.
        seconds: Since the merge began.
    """

    alpha: float
    flops: Mapping[Combination, int]
    scores: Mapping[str, float]
    cost: float
    is_feasible: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The merge is over.

    Attributes:
        alpha: Of the result.
        is_feasible: Whether all tasks are good enough.
        seconds: That it took.
    """

    alpha: float
    is_feasible: bool
    seconds: float


Event = Started | StageBegan | RoundEnded | AlphaTried | Finished
Progress = Callable[[Event], None]
