"""What is told while a family is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from serving.records import Variant
from serving.training import Trained


class Stage(StrEnum):
    """What is done, in this order (MTLsys, section 4.2)."""

    TRAIN = "train"
    PRUNE = "prune"
    FINE_TUNE = "fine-tune"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBegan:
    """A stage begins for networks of these names."""

    stage: Stage
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkDone:
    """A network of a stage is done, in this many seconds; ``loss`` NaN where it was not trained."""

    stage: Stage
    name: str
    seconds: float
    loss: float

    @classmethod
    def of(cls, stage: Stage, trained: Trained) -> NetworkDone:
        """Return what is told of a network that was trained."""
        return cls(stage=stage, name=trained.name, seconds=trained.seconds, loss=trained.loss)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Something could not be made: a variant, or a network with all variants that would have come of it."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A variant is in the store."""

    variant: Variant


Event = StageBegan | NetworkDone | LeftOut | Stored
Tell = Callable[[Event], None]


def tell_nobody(event: Event) -> None:
    """Do nothing with an event."""
