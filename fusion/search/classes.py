"""Best classes of outputs of any shape: one per sample, per token or per place of a map."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fusion.graph.errors import FusionError
from fusion.search.data import labelled
from fusion.search.tasks import Task


def class_points(task: Task, output: Tensor, theirs: Tensor, labels: Tensor | None) -> tuple[Tensor, ...]:
    """Count the elements of each sample whose best class is right.

    Args:
        task: For messages.
        output: The student's class scores `(batch, …)`, classes on the axis that the labels lack.
        theirs: The teacher's, of the same shape.
        labels: `(batch, …)`, int64; -100: does not count. None: the teacher's best class is right.

    Returns:
        The student's right ones, the teacher's, those on which both agree, and all that count; each `(batch,)`.

    Raises:
        FusionError: The labels fit no axis of classes.
    """
    axis = _class_axis(task, output.shape, None if labels is None else labels.shape)
    ours, teachers = _best_class(output, axis), _best_class(theirs, axis)
    right = teachers if labels is None else labels.reshape(teachers.shape)
    counts = torch.ones_like(right, dtype=torch.bool) if labels is None else labelled(right)
    rows = [(ours == right) & counts, (teachers == right) & counts, (ours == teachers) & counts, counts]
    return tuple(row.reshape(len(output), -1).sum(dim=1) for row in rows)


def _class_axis(task: Task, shape: torch.Size, labels: torch.Size | None) -> int | None:
    """Find the axis of the classes; None: one number per element, a logit of "yes"."""
    usual = 1 if len(shape) >= 4 else len(shape) - 1  # maps have their channels first, sequences last
    if labels is None:
        return usual if usual > 0 and shape[usual] > 1 else None
    for axis in (usual, 1, len(shape) - 1):
        if 0 < axis < len(shape) and shape[axis] > 1 and _sizes(shape[:axis] + shape[axis + 1 :]) == _sizes(labels):
            return axis
    if math.prod(shape) == math.prod(labels):
        return None
    raise FusionError(
        f"task '{task.name}': labels {tuple(labels)} fit no axis of classes in the output {tuple(shape)}; "
        "pass Task(score=...) or Task(output=...)"
    )


def _sizes(shape: torch.Size) -> list[int]:
    return [shape[0], *(size for size in shape[1:] if size != 1)]


def _best_class(output: Tensor, axis: int | None) -> Tensor:
    """Return the class of each element, int64; -1 where its scores are not finite, which is no class."""
    if axis is None:
        return (output > 0).long().masked_fill(~output.isfinite(), -1)
    return output.argmax(dim=axis).masked_fill(~output.isfinite().all(dim=axis), -1)
