"""Samples, labels, losses and scores: what a task is trained and judged by."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.merging.errors import MergeError

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Inputs and, by task, labels.

    Attributes:
        inputs: ``(N, …)``.
        labels: By task: int64 ``(N,)`` classes; ``(N, B)`` of zeros and ones; floating point ``(N,)`` or ``(N, D)``.
    """

    inputs: Tensor
    labels: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, index: Tensor) -> Samples:
        """Return some samples."""
        return Samples(inputs=self.inputs[index], labels={task: values[index] for task, values in self.labels.items()})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergeData:
    """What a merge sees.

    Attributes:
        train: Trains, and gives the samples on which information is estimated.
        validation: Judges, while pruning, whether a task is still good enough.
        test: Held out for the report; None if there is none.
    """

    train: Samples
    validation: Samples
    test: Samples | None = None


def is_classes(labels: Tensor) -> bool:
    """Return whether labels are class indices."""
    return labels.ndim == 1 and not labels.is_floating_point()


def is_attributes(labels: Tensor) -> bool:
    """Return whether labels are zeros and ones, several for a sample."""
    return labels.ndim == 2 and bool(((labels == 0) | (labels == 1)).all())


def expected_labels(shape: tuple[int, ...], labels: Tensor) -> str | None:
    """Return what labels should be for a network that answers ``shape`` for a sample; None if they are."""
    if labels.is_floating_point():
        num_values = math.prod(shape)
        return None if labels[:1].numel() == num_values else f"{num_values} values for each"
    if labels.ndim == 1:
        is_fitting = len(shape) == 1 and bool((labels >= 0).all()) and int(labels.max()) < shape[0]
        return None if is_fitting else "one class below that number for each"
    is_fitting = is_attributes(labels) and labels.shape[1:] == shape
    return None if is_fitting else "zeros and ones of that shape for each"


def loss_for(labels: Tensor) -> Loss:
    """Return the loss that labels of this kind call for: cross entropy, binary cross entropy by attribute, or squared error."""
    if is_classes(labels):
        return F.cross_entropy
    if is_attributes(labels):
        return lambda output, target: F.binary_cross_entropy_with_logits(output, target.to(output.dtype))
    return lambda output, target: F.mse_loss(output, target.reshape(output.shape).to(output.dtype))


def score(output: Tensor, labels: Tensor) -> float:
    """Return how good outputs are, 1 at best: accuracy, mean binary accuracy, or the share of variance that is explained.

    What is not a number is wrong, so that a score is always one, minus infinity at worst.
    """
    if is_classes(labels):
        return float(((output.argmax(1) == labels) & ~output.isnan().any(1)).double().mean())
    if is_attributes(labels):
        return float((((output > 0) == (labels > 0.5)) & ~output.isnan()).double().mean())
    target = labels.reshape(output.shape).double()
    found = float(1 - ((output.double() - target) ** 2).sum() / ((target - target.mean(0)) ** 2).sum())
    return -math.inf if math.isnan(found) else found


def scores(
    model: Callable[[Tensor], Mapping[str, Tensor]], samples: Samples, tasks: Collection[str], *, batch_size: int = 256
) -> dict[str, float]:
    """Return the score of each task of a model that answers with a dict; a module is asked in evaluation mode."""
    was = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    outputs: dict[str, list[Tensor]] = {task: [] for task in tasks}
    with torch.no_grad():
        for start in range(0, len(samples), batch_size):
            answers = model(samples.inputs[start : start + batch_size])
            for task in tasks:
                outputs[task].append(answers[task])
    if isinstance(model, nn.Module):
        model.train(was)
    return {task: score(torch.cat(values), samples.labels[task]) for task, values in outputs.items()}


def batches(samples: Samples, batch_size: int, generator: torch.Generator) -> Iterator[Samples]:
    """Yield batches for ever, each pass in an order of its own; a last smaller batch is left out if there is a whole one."""
    size = min(batch_size, len(samples))
    while True:
        order = torch.randperm(len(samples), generator=generator)
        for start in range(0, len(samples) - size + 1, size):
            yield samples.take(order[start : start + size].to(samples.inputs.device))


def check_samples(samples: Samples, tasks: Collection[str], what: str) -> None:
    """Check that there are samples, that every task has a label for each, and that real-valued labels vary.

    Raises:
        MergeError: With everything that is wrong.
    """
    if not len(samples):
        raise MergeError(f"{what}: there are none")
    problems: list[str] = []
    for task in tasks:
        labels = samples.labels.get(task)
        if labels is None:
            problems.append(f"{what}: no labels of task {task!r}; there are those of {', '.join(samples.labels) or 'none'}")
        elif len(labels) != len(samples):
            problems.append(f"{what}: {len(labels)} labels of task {task!r} for {len(samples)} samples")
        elif labels.is_floating_point() and not bool(torch.isfinite(labels).all()):
            problems.append(f"{what}: labels of task {task!r} that are not finite; every sample needs a label of every task")
        elif labels.is_floating_point() and not is_attributes(labels) and bool((labels == labels[:1]).all()):
            problems.append(
                f"{what}: labels of task {task!r} that are all the same; of their variance nothing can be explained"
            )
    if not bool(torch.isfinite(samples.inputs).all()):
        problems.append(f"{what}: inputs that are not finite")
    if problems:
        raise MergeError("\n".join(problems))
