"""Learning rates of a fused model: by what it is made of, and by step (paper section 6.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from fusion.graph.errors import FusionError

if TYPE_CHECKING:
    from fusion.graph.tree import FusedTree


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Learning rates of a fused model.

    Args:
        blocks: Of blocks, which come trained.
        adapters: Of adapters, which are new or nearly so.
        adapters_alone: Steps in which only adapters are trained, so that a fresh one does not spoil the blocks.
        resting: Names of blocks that are not trained before the step `rest_until`.
        rest_until: A step.
    """

    blocks: float
    adapters: float
    adapters_alone: int = 0
    resting: frozenset[str] = frozenset()
    rest_until: int = 0


def make_optimizer(tree: FusedTree, rates: Rates) -> torch.optim.Adam:
    """Make Adam over all trainable parameters, with rates for blocks and adapters (paper section 6.1).

    Args:
        tree: A fused model; frozen parameters are left out.
        rates: Without an adapter in the tree, `adapters_alone` is 0.

    Raises:
        FusionError: All parameters are frozen.
    """
    steps = {name: [p for p in step.parameters() if p.requires_grad] for name, step in tree.nodes.items()}
    adapters = _once(p for name, parameters in steps.items() if is_adapter(name) for p in parameters)
    late = _once(p for name, parameters in steps.items() if name in rates.resting for p in parameters)
    held = {id(p) for p in late}
    own = _once(p for name, parameters in steps.items() if not is_adapter(name) for p in parameters)
    blocks = [p for p in own if id(p) not in held]
    start = rates.adapters_alone if adapters else 0
    if not adapters and not own:
        raise FusionError("every parameter of the fused model is frozen; there is nothing to train")
    groups = [
        {"params": blocks, "lr": rates.blocks, "initial_lr": rates.blocks, "starts_at": start},
        {"params": adapters, "lr": rates.adapters, "initial_lr": rates.adapters, "starts_at": 0},
        {"params": late, "lr": rates.blocks, "initial_lr": rates.blocks, "starts_at": max(start, rates.rest_until)},
    ]
    is_fused = all(p.device.type in {"cpu", "cuda"} for p in (*own, *adapters))  # several times as fast where there is one
    return torch.optim.Adam([group for group in groups if group["params"]], fused=is_fused)


def is_adapter(step: str) -> bool:
    """Whether a step of this name is an adapter."""
    return step.startswith("a")


def _once(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return list({id(parameter): parameter for parameter in parameters}.values())  # tied within a model


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUpCosine:
    """Factor of the learning rates: linear up to 1 during warm-up, then half a cosine down to `last`.

    Args:
        steps: Of the whole training, all rungs together.
        warm_up: Steps until the factor is 1.
        last: Factor at the end and after it, in [0, 1].

    Example:
        >>> schedule = WarmUpCosine(steps=6, warm_up=2, last=0.0)
        >>> [round(schedule(step), 3) for step in range(7)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """

    steps: int
    warm_up: int = 0
    last: float = 0.05

    def __call__(self, step: int) -> float:
        """Return the factor at a step."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        share = min(1.0, (step - self.warm_up) / max(1, self.steps - self.warm_up))
        return self.last + (1 - self.last) * (1 + math.cos(math.pi * share)) / 2
