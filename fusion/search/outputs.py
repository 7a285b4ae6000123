"""The float tensors of a model's output, whatever its structure: tensor, tuple, list or dict, nested as it likes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor

from fusion.graph.errors import FusionError
from fusion.search.tasks import Task


def float_tensors(output: Any, num_samples: int) -> dict[str, Tensor]:
    """Collect the float tensors with one row per sample, in the output's own order, by dotted path.

    A tensor without such a first axis (a scalar loss, say) is no answer about a sample, and is left out.

    Args:
        output: What a model returned.
        num_samples: Samples that went in.

    Example:
        >>> import torch
        >>> list(float_tensors({"logits": torch.zeros(2, 3), "more": (torch.ones(2), torch.arange(2))}, 2))
        ['logits', 'more.0']
    """
    found = _walk(output, "")
    return {path: x for path, x in found if x.is_floating_point() and x.ndim and x.shape[0] == num_samples}


def scored_path(paths: Collection[str], task: Task) -> str:
    """Say which of an output's float tensors is scored.

    Raises:
        FusionError: The task names no part and there are several, or the part is not there.
    """
    if task.output is not None and str(task.output) in paths:
        return str(task.output)
    if task.output is None and len(paths) == 1:
        return next(iter(paths))
    wanted = "one float tensor" if task.output is None else f"a float tensor '{task.output}'"
    raise FusionError(
        f"task '{task.name}': expected {wanted} in the output, found {', '.join(paths) or 'none'}; name one in Task(output=...)"
    )


def _walk(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path or "0", value
        return
    if isinstance(value, Mapping):
        inner = list(value.items())
    elif isinstance(value, tuple | list):
        inner = list(enumerate(value))
    else:
        return
    for key, item in inner:
        yield from _walk(item, f"{path}.{key}" if path else str(key))
