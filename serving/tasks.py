"""Losses and scores of tasks, by their kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from serving.data import TaskData
from serving.errors import ServingError
from serving.records import Kind, TaskSpec


def describe_tasks(
    outputs: Mapping[str, Tensor], train: TaskData, weights: Mapping[str, float] | None = None
) -> list[TaskSpec]:
    """Return what the tasks of a network are, by its outputs and the labels.

    Args:
        outputs: Of the network for some samples, ``(n, ...)`` by task.
        train: Labels of every task, see :class:`TaskData`: int64 class numbers mean classification; float32 labels of zeros
            and ones in as many columns as the output has, multi-label; other float32 labels, regression.
        weights: Of the losses in their sum. A task that is not in it gets one over the loss of the best constant answer
            (entropy of its labels, variance of its targets), so that all terms begin near 1. MTLsys, section 4.2, sets them
            by hand to the same end.

    Raises:
        ServingError: With every task whose labels are missing or do not fit.
    """
    problems, found = [], []
    for name, output in outputs.items():
        labels = train.labels.get(name)
        if labels is None:
            given = ", ".join(train.labels) or "none"
            problems.append(f"task {name!r}: expected labels of it in the training data; got labels of {given}")
            continue
        try:
            task = _described(name, output, labels)
        except ServingError as error:
            problems.append(str(error))
        else:
            weight = (weights or {}).get(name)
            found.append(replace(task, weight=1 / _constant_loss(task, labels) if weight is None else weight))
    if problems:
        raise ServingError("\n".join(problems))
    return found


def losses_of(task: TaskSpec, output: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of each sample, ``(N,)``; its mean is PyTorch's loss of the task's kind."""
    if task.kind is Kind.CLASSIFICATION:
        return F.cross_entropy(output, labels, reduction="none")
    loss = F.binary_cross_entropy_with_logits if task.kind is Kind.MULTILABEL else F.mse_loss
    return loss(output.reshape(labels.shape), labels, reduction="none").reshape(len(labels), -1).mean(1)


def score_of(task: TaskSpec, output: Tensor, labels: Tensor) -> float:
    """Return a score in [0, 1], higher is better.

    Accuracy of a classification; the share of right bits of a multi-label task; of a regression ``max(0, 1 - MSE / Var)``
    with the variance of the training targets (MTLsys does not say what its score of age is).

    Raises:
        ServingError: If an output is not finite.
    """
    if not bool(torch.isfinite(output).all()):
        raise ServingError(f"task {task.name!r}: an output is not finite")
    if task.kind is Kind.CLASSIFICATION:
        return float((output.argmax(1) == labels).double().mean())
    output = output.reshape(labels.shape)
    if task.kind is Kind.MULTILABEL:
        return float(((output > 0) == (labels > 0.5)).double().mean())
    return max(0.0, 1 - float(((output - labels) ** 2).double().mean()) / task.variance)


def weighted_sum(tasks: Iterable[TaskSpec], outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
    """Return the weighted sum of the tasks' losses for each sample, ``(N,)``."""
    terms = [task.weight * losses_of(task, outputs[task.name], labels[task.name]) for task in tasks]
    return torch.stack(terms).sum(0)


def _described(name: str, output: Tensor, labels: Tensor) -> TaskSpec:
    shape = tuple(output.shape[1:])
    given = f"{str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)}"
    if labels.dtype == torch.int64:
        if labels.ndim != 1 or len(shape) != 1:
            raise ServingError(
                f"task {name!r}: expected class numbers (N,) for an output (N, classes); got {given}, output {shape}"
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= shape[0]:
            raise ServingError(f"task {name!r}: expected class numbers from 0 to {shape[0] - 1}; got {low} to {high}")
        return TaskSpec(name=name, kind=Kind.CLASSIFICATION, shape=shape)
    if labels.dtype != torch.float32 or labels.ndim > 2:
        raise ServingError(f"task {name!r}: expected labels int64 (N,), or float32 (N,) or (N, D); got {given}")
    if not bool(torch.isfinite(labels).all()):
        raise ServingError(f"task {name!r}: its labels are not all finite")
    if math.prod(labels.shape[1:]) != math.prod(shape):
        raise ServingError(f"task {name!r}: expected {math.prod(shape)} labels for a sample, as its output has; got {given}")
    if labels.ndim == 2 and bool(((labels == 0) | (labels == 1)).all()):
        return TaskSpec(name=name, kind=Kind.MULTILABEL, shape=shape)
    variance = float(labels.double().var(0, unbiased=False).mean())
    if variance == 0:
        raise ServingError(f"task {name!r}: its targets are all the same, so there is nothing to predict")
    return TaskSpec(name=name, kind=Kind.REGRESSION, shape=shape, variance=variance)


def _constant_loss(task: TaskSpec, labels: Tensor) -> float:
    """Return the loss of the best answer that does not look at the sample; 1 where that is 0."""
    if task.kind is Kind.REGRESSION:
        return task.variance
    if task.kind is Kind.CLASSIFICATION:
        shares = torch.bincount(labels).double() / len(labels)
        return float(torch.special.entr(shares).sum()) or 1.0
    shares = labels.double().mean(0)
    return float((torch.special.entr(shares) + torch.special.entr(1 - shares)).mean()) or 1.0
