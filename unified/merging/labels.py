"""Labels as merging trains by them: whether they fit the models' outputs, and in which form."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fusion.merging.samples import expected_labels
from unified.errors import UnifiedError

BINARY = "BCEWithLogitsLoss"


def fitting_labels(output: Tensor, labels: Tensor, loss: str | None) -> Tensor:
    """Return labels in the form that says what they are: zeros and ones ``(N, B)`` for attributes, as they are else.

    Args:
        output: Of the task's model, ``(n, …)``.
        labels: ``(N, …)``.
        loss: That the model was trained with, None if that is not known.

    Example:
        >>> import torch
        >>> fitting_labels(torch.zeros(2, 1), torch.tensor([0.0, 1.0, 1.0]), "BCEWithLogitsLoss").shape
        torch.Size([3, 1])
    """
    is_binary = loss == BINARY or not labels.is_floating_point()
    return labels.reshape(-1, 1) if is_binary and labels.ndim == 1 and output.ndim == 2 and output.shape[1] == 1 else labels


def check_outputs(outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor], losses: Mapping[str, str]) -> None:
    """Refuse labels that do not fit what the models answer.

    Raises:
        UnifiedError: With all that do not.
    """
    problems = []
    for task, output in outputs.items():
        if losses.get(task) == BINARY and output.ndim == 1:
            problems.append(
                f"task {task!r}: with {BINARY} expected a model that answers (1,) for a sample, got one number alone"
            )
            continue
        expected = expected_labels(tuple(output.shape[1:]), fitting_labels(output, labels[task], losses.get(task)))
        if expected:
            given = f"{labels[task].dtype} {tuple(labels[task].shape)}".removeprefix("torch.")
            problems.append(
                f"task {task!r}: its model answers {tuple(output.shape[1:])} for a sample, so expected {expected}; "
                f"got labels {given}, smallest {labels[task].min().item():g}, largest {labels[task].max().item():g}"
            )
    if problems:
        raise UnifiedError("\n".join(problems))
