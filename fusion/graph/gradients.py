"""See that a capture has not cut gradients off: checkpointing with ``use_reentrant=True`` makes torch.export do so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fusion.graph.captured import Captured
from fusion.graph.errors import CaptureError
from fusion.graph.operators import packet


def cut_off(captured: Captured) -> list[str]:
    """Return the trainable parameters that a graph uses but gives no gradient, because every way from them is detached."""
    reached: set[fx.Node] = set()
    stack = [captured.graph.output_node()]
    while stack:
        node = stack.pop()
        if node not in reached and packet(node) not in ("detach", "detach_"):
            reached.add(node)
            stack.extend(node.all_input_nodes)
    used = [node for node in captured.graph.nodes if node.op == "get_attr" and node not in reached]
    tensors = [captured.tensors.get(str(node.target)) for node in used]
    return [str(node.target) for node, tensor in zip(used, tensors, strict=True) if tensor is not None and tensor.requires_grad]


def check_gradients(
    captured: Captured, reference: Callable[[tuple[Tensor, ...]], Any], batch: tuple[Tensor, ...], label: str
) -> None:
    """Check that what gets no gradient in the evaluation graph gets none in the model.

    Raises:
        CaptureError: If the model gives one.
    """
    names = cut_off(captured)
    if not names:
        return
    with torch.enable_grad():
        leaves = [leaf for leaf in pytree.tree_leaves(reference(batch)) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not leaves:
            return
        found = _gradients(leaves, [captured.tensors[name] for name in names])
    lost = [name for name, has_one in zip(names, found, strict=True) if has_one]
    if lost:
        raise CaptureError(
            f"model '{label}': the capture gives no gradient to {lost[0]}, the model does; if its forward calls "
            "torch.utils.checkpoint.checkpoint, call it with use_reentrant=False"
        )


def _gradients(outputs: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[bool]:
    """Return for each tensor whether it gets a gradient."""
    total = torch.stack([output.sum() for output in outputs]).sum()
    try:
        return [gradient is not None for gradient in torch.autograd.grad(total, tensors, allow_unused=True)]
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        return [True] * len(tensors)  # such a checkpoint gives gradients, but not when it is asked like this
