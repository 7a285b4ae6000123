"""Indices in the data that a model or its loss cannot look up: on a GPU one of them would end everyone's job.

Which indices a model takes is known to its operators only, so the samples with the smallest and largest ones are run through
it, on the CPU, where an index out of range is an error like others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unified.components import select_output
from unified.dataset_problems import named_tensors, reason
from unified.datasets import INDEX_LOSSES, TensorData, label_problems
from unified.errors import Problem
from unified.job import JobSpec
from unified.process_settings import ProcessSettings


def index_problems(spec: JobSpec, module: nn.Module, datasets: Mapping[str, TensorData]) -> list[Problem]:
    """Run the outermost samples of each dataset through ``module`` and return what it or the loss cannot look up.

    Other failures are none of this function's: a training step tells them.

    Args:
        spec: The job.
        module: Its model, on the CPU; put in evaluation mode.
        datasets: Its data by field, e.g. ``"data.train"``.
    """
    problems: list[Problem] = []
    for field, data in datasets.items():
        plain = _outputs(spec, module, data, torch.arange(min(2, len(data))))
        if isinstance(plain, Exception):
            continue
        rows = _outermost(data)
        outputs = _outputs(spec, module, data, rows) if len(rows) else plain
        if isinstance(outputs, Exception):
            problems.append(_problem(spec.name, field, data, outputs))
        problems += labels_out_of_range(spec, field, data, _num_classes(spec, plain))
    return problems


def labels_out_of_range(spec: JobSpec, field: str, data: TensorData, num_classes: int | None) -> list[Problem]:
    """Return what is wrong with the labels of a job's dataset; see :func:`unified.datasets.label_problems`."""
    ignored = spec.loss.kwargs.get("ignore_index", -100)
    return label_problems(data, num_classes, spec.loss.name, job=spec.name, field=field, ignore_index=ignored)


def _outputs(spec: JobSpec, module: nn.Module, data: TensorData, rows: Tensor) -> Any:
    """Return the model's output for some samples, or what it raised; switches of the process that it turns are turned back."""
    inputs, _ = data.batch(rows)
    try:
        with ProcessSettings.preserved(), torch.no_grad():
            result = module.eval()(**inputs) if isinstance(inputs, dict) else module.eval()(inputs)
            return select_output(result, spec.output)
    except Exception as error:  # noqa: BLE001 - whatever the model raises
        return error


def _outermost(data: TensorData) -> Tensor:
    """Return the samples that hold the smallest and the largest value of each input of integers."""
    rows: list[int] = []
    for tensor in _integer_inputs(data).values():
        width = tensor[0].numel()
        flat = tensor.reshape(-1)
        rows += [int(flat.argmin()) // width, int(flat.argmax()) // width]
    return torch.tensor(sorted({*rows}), dtype=torch.int64)


def _integer_inputs(data: TensorData) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in named_tensors(data.inputs, data.targets).items()
        if name != "targets" and not tensor.is_floating_point() and tensor.dtype is not torch.bool and tensor.numel()
    }


def _num_classes(spec: JobSpec, output: Any) -> int | None:
    """Return how many classes the output tells apart, or None where the loss does not take it so."""
    if spec.loss.name not in INDEX_LOSSES or not isinstance(output, Tensor) or output.dim() < 2:
        return None
    return output.shape[1]


def _problem(job: str, field: str, data: TensorData, error: Exception) -> Problem:
    ranges = [f"{name} from {int(tensor.min())} to {int(tensor.max())}" for name, tensor in _integer_inputs(data).items()]
    return Problem(
        code="E-DATA",
        job=job,
        field=field,
        expected="indices that the model can look up",
        given=f"{', '.join(ranges)}: {reason(error)}",
        remedy="let the model's tables cover all indices of the data, e.g. the tokenizer's whole vocabulary",
    )
