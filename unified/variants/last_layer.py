"""A network of several tasks with its loss as last layer: what trains it needs to know one loss only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from serving.data import TaskData
from serving.records import TaskSpec
from serving.tasks import weighted_sum

NETWORK = "network"  #: before the names of the network's own parameters


class LastLayerLoss(nn.Module):
    """Gives each sample's loss ``(N,)`` for its inputs and labels by name, as :func:`tensors_of` names them.

    Args:
        network: Takes inputs by position and gives ``{task: tensor}``.
        tasks: Whose weighted losses are added up.
        data: What it will be trained on, for the names.
    """

    def __init__(self, network: nn.Module, tasks: tuple[TaskSpec, ...], data: TaskData) -> None:
        super().__init__()
        self.network = network
        self.tasks = tasks
        self.inputs = [_input(place) for place in range(len(data.inputs))]
        self.labels = {task: _label(place) for place, task in enumerate(data.labels)}

    def forward(self, **tensors: Tensor) -> Tensor:
        """Return the losses."""
        outputs = self.network(*(tensors[name] for name in self.inputs))
        return weighted_sum(self.tasks, outputs, {task.name: tensors[self.labels[task.name]] for task in self.tasks})

    def structure(self) -> dict[str, Any]:
        """Return what decides whether two of these may step as one, beside their networks."""
        return {"tasks": [repr(task) for task in self.tasks], "inputs": self.inputs, "labels": self.labels}


def tensors_of(data: TaskData) -> dict[str, Tensor]:
    """Return inputs and all labels under names of their own: one mapping for all subsets of tasks, so one dataset."""
    inputs = {_input(place): tensor for place, tensor in enumerate(data.inputs)}
    return inputs | {_label(place): labels for place, labels in enumerate(data.labels.values())}


def own_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the network's part of the state dict of a :class:`LastLayerLoss`."""
    return {name.removeprefix(f"{NETWORK}."): value for name, value in state_dict.items()}


def _input(place: int) -> str:
    return f"input_{place}"


def _label(place: int) -> str:
    return f"label_{place}"
