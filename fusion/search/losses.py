"""How far a fused model's answers are from those of the original models (paper section 5.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fusion.graph.errors import FusionError
from fusion.search.outputs import float_tensors

if TYPE_CHECKING:
    from fusion.search.training import Batch

Kind = Literal["l1", "mse"]
_DISTANCES = {"l1": F.l1_loss, "mse": F.mse_loss}


def distillation_loss(
    weights: Mapping[str, tuple[float, ...]],
    outputs: Mapping[str, Any],
    batch: Batch,
    *,
    kind: Kind = "l1",
    hint_weight: float = 1.0,
) -> Tensor:
    """Weigh the distances of all answers from the teachers'.

    `L_t = Σ_i w_ti · mean |output_ti − target_ti|` over every float tensor i of task t's output, with
    `w_ti = 1 / (n_t · E|target_ti|)` where the paper has one tensor and `1 / E|target|`; and the like for features that are
    to be imitated on the way.

    Args:
        weights: By task, one for each float tensor of its output: `TeacherCache.loss_weights`.
        outputs: By task, as the fused model returns them; with `batch.hints` also the output of each such step, by its name.
        batch: With the targets.
        kind: "l1" as in the paper, or "mse" (weights of the same kind).
        hint_weight: Weight of the distance of each hint, which is relative to the hint's own mean size.

    Returns:
        Loss of each task, `(tasks,)`, in the order of `batch.targets`.

    Raises:
        FusionError: An output has other tensors than the teacher's.
    """
    distance, num_samples = _DISTANCES[kind], len(batch.inputs[0])
    losses: dict[str, Tensor] = {}
    for task, targets in batch.targets.items():
        found = list(float_tensors(outputs[task], num_samples).values())
        if [tensor.shape for tensor in found] != [target.shape for target in targets]:
            shapes = [tuple(tensor.shape) for tensor in found], [tuple(target.shape) for target in targets]
            raise FusionError(f"task '{task}': outputs {shapes[0]}, expected {shapes[1]} as the original model's")
        rows = zip(weights[task], found, targets, strict=True)
        losses[task] = torch.stack([weight * distance(tensor, target) for weight, tensor, target in rows]).sum()
    for name, hint in batch.hints.items():
        size = hint.target.abs().mean() if kind == "l1" else hint.target.square().mean()
        losses[hint.task] = losses[hint.task] + hint_weight * distance(outputs[name], hint.target) / size.clamp_min(1e-12)
    return torch.stack(list(losses.values()))
