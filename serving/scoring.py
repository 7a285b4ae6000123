"""What a network scores on held-out data."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from serving.data import TaskData
from serving.errors import ServingError
from serving.fitting import output_problems
from serving.records import TaskSpec
from serving.tasks import score_of

ROWS = 64  #: samples that are evaluated at once; what more of them take up does not stay in a CPU's cache


def score_network(
    network: nn.Module, tasks: Iterable[TaskSpec], data: TaskData, device: torch.device
) -> dict[str, float] | str:
    """Return the score of each task, see :func:`serving.tasks.score_of`; or why there is none: an output is not finite.

    Args:
        network: In eval mode, on the device.
        tasks: Those it answers.
        data: Inputs, and labels of these tasks.
        device: Where the network is.

    Raises:
        ServingError: If the network fails on these samples, or its outputs are of other shapes.
    """
    tasks = tuple(tasks)
    found: dict[str, list[Tensor]] = {task.name: [] for task in tasks}
    with torch.inference_mode():
        for start in range(0, len(data), ROWS):
            inputs = [tensor[start : start + ROWS].to(device) for tensor in data.inputs]
            try:
                outputs = network(*inputs)
            except Exception as error:  # whatever a network raises on these samples is its own problem
                raise ServingError(f"it fails on held-out samples: {type(error).__name__}: {error}") from error
            problems = output_problems(tasks, outputs, len(inputs[0]))
            if problems:
                raise ServingError("; ".join(problems))
            for name, parts in found.items():
                parts.append(outputs[name].cpu())
    try:
        return {task.name: score_of(task, torch.cat(found[task.name]), data.labels[task.name]) for task in tasks}
    except ServingError as error:
        return str(error)
