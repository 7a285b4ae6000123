"""Whether inputs and labels are what a family takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from serving.data import TaskData
from serving.records import DTYPES, Family, Kind, TaskSpec


def input_problems(family: Family, inputs: Sequence[Tensor]) -> list[str]:
    """Return what is wrong with inputs, of which there must be at least one sample."""
    if len(inputs) != len(family.inputs):
        return [f"expected {len(family.inputs)} inputs, got {len(inputs)}"]
    return [
        f"input {spec.name!r}: expected {DTYPES[spec.dtype]} (n, {', '.join(map(str, spec.shape))}), n from 1;"
        f" got {_described(tensor)}"
        for spec, tensor in zip(family.inputs, inputs, strict=True)
        if str(tensor.dtype) != f"torch.{DTYPES[spec.dtype]}" or tuple(tensor.shape[1:]) != spec.shape or not len(tensor)
    ]


def label_problems(family: Family, data: TaskData) -> list[str]:
    """Return what is wrong with labels, of which there must be some of every task."""
    problems = []
    for task in family.tasks:
        labels = data.labels.get(task.name)
        if labels is None:
            problems.append(f"task {task.name!r}: expected labels of it, got those of {', '.join(data.labels) or 'none'}")
        elif task.kind is Kind.CLASSIFICATION:
            if labels.dtype != torch.int64 or labels.ndim != 1:
                problems.append(f"task {task.name!r}: expected class numbers int64 (N,), got {_described(labels)}")
        elif labels.dtype != torch.float32 or math.prod(labels.shape[1:]) != math.prod(task.shape):
            problems.append(
                f"task {task.name!r}: expected labels float32 (N, {math.prod(task.shape)}), got {_described(labels)}"
            )
    return problems


def output_problems(tasks: Iterable[TaskSpec], outputs: Mapping[str, object], rows: int) -> list[str]:
    """Return what is wrong with what a stored network answers for so many samples; its files may say anything."""
    problems = []
    for task in tasks:
        output, shape = outputs.get(task.name), (rows, *task.shape)
        if not isinstance(output, Tensor) or tuple(output.shape) != shape:
            given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            problems.append(f"task {task.name!r}: expected an output {shape}, got {given}")
    return problems


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
