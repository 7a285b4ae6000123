"""Renew BatchNorm's statistics where a mutation has changed what a block sees (R12 of the design)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fusion.graph.tree import FusedTree
from fusion.search.build import block_name
from fusion.search.space import BlockId
from fusion.timer import evaluating

_ARGUMENTS = {
    torch.ops.aten.batch_norm.default: (
        "input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled",
    ),
    torch.batch_norm: (
        "input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled",
    ),
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
}  # fmt: skip


def recalibrate(tree: FusedTree, batches: Iterable[Sequence[Tensor]]) -> list[str]:
    """Replace the running means and variances of affected blocks by those over all samples of some batches.

    Affected is what takes another input than in its own model, and all that comes behind; what is frozen is not. Where such
    a BatchNorm comes before another, it normalises by the batch at hand, as in training; nothing else is as in training:
    no dropout, no random draws. Weights, modes and all other buffers stay as they are.

    Args:
        tree: Is changed in place.
        batches: Raw inputs in the order of the signature; all of them enter with equal weight per value.

    Returns:
        The steps with renewed statistics, in the order of the tree.
    """
    affected = [name for name in affected_steps(tree) if name not in tree.frozen]
    sums: dict[int, _Sums] = {}
    for name in affected:
        for mean, variance in _statistics(tree.nodes[name]):
            sums.setdefault(id(mean), _Sums(mean, variance))
    if not sums:
        return []
    with evaluating(tree), torch.no_grad(), _Collect(sums):
        for inputs in batches:
            tree.run(inputs)
    for entry in sums.values():
        entry.write()
    return [name for name in affected if any(id(mean) in sums for mean, _ in _statistics(tree.nodes[name]))]


def affected_steps(tree: FusedTree) -> list[str]:
    """Return the steps that see other values than in the models that they are from, in the order of the tree."""
    found: dict[str, bool] = {}
    for step in tree.steps:
        is_block = step.name.startswith("b")
        found[step.name] = not is_block or found.get(step.source or "", False) or not _is_own(step.name, step.source)
    return [name for name, is_affected in found.items() if is_affected]


def _is_own(name: str, source: str | None) -> bool:
    """Whether a block takes what it takes in its own model."""
    task, op = (int(number) for number in name[1:].split("_"))
    return source == (block_name(BlockId(task, op - 1)) if op else None)


def _statistics(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    buffers = dict(module.named_buffers())
    return [
        (mean, buffers[name.removesuffix("running_mean") + "running_var"])
        for name, mean in buffers.items()
        if name.endswith("running_mean")
    ]


class _Sums:
    """Count, mean and squared deviations of what a BatchNorm has seen, in double precision (Chan et al., 1983)."""

    def __init__(self, mean: Tensor, variance: Tensor) -> None:
        self._mean, self._variance = mean, variance
        self._count = 0
        self._center = torch.zeros_like(mean, dtype=torch.float64)
        self._squares = torch.zeros_like(mean, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        others = [dim for dim in range(x.ndim) if dim != 1]
        count = x.numel() // x.shape[1]
        variance, mean = torch.var_mean(x.double(), dim=others, correction=0)
        total, delta = self._count + count, mean - self._center
        self._squares += variance * count + delta.square() * (self._count * count / total)
        self._center += delta * (count / total)
        self._count = total

    def write(self) -> None:
        if self._count < 2:
            return
        self._mean.copy_(self._center)
        self._variance.copy_(self._squares / (self._count - 1))


class _Collect(TorchFunctionMode):
    """Hands what a BatchNorm sees to its sums, and lets it normalise by the batch."""

    def __init__(self, sums: Mapping[int, _Sums]) -> None:
        super().__init__()
        self._sums = sums

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        names = _ARGUMENTS.get(func)
        if names is None:
            return func(*args, **(kwargs or {}))
        given = dict(zip(names, args, strict=False)) | (kwargs or {})
        entry = self._sums.get(id(given["running_mean"]))
        if entry is None:
            return func(*args, **(kwargs or {}))
        x = given["input"]
        entry.add(x)
        if x.numel() == x.shape[1]:
            return func(*args, **(kwargs or {}))  # a single value has no variance
        return F.batch_norm(x, None, None, given["weight"], given["bias"], training=True, momentum=0.0, eps=given["eps"])
