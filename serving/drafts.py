"""A variant before it is in a store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from serving.records import Source


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draft:
    """A network that is to become a variant.

    Attributes:
        name: Unique in its family.
        module: Takes the family's inputs by position and gives ``{task: tensor}``; stored in evaluation mode.
        tasks: What it answers.
        source: How it came about.
        parent: Name of the draft or variant that it was made from, None if there is none.
        ratio: Pruning ratio asked for.
        achieved: See :class:`serving.records.Variant`.
        provenance: JSON.
    """

    name: str
    module: nn.Module
    tasks: tuple[str, ...]
    source: Source
    parent: str | None = None
    ratio: float = 0.0
    achieved: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
