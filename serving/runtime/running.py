"""Running one batch: join inputs, infer, check, and cut the outputs apart again. No queue, no thread."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_log = logging.getLogger(__name__)

Inputs = tuple[Tensor, ...]
Outputs = dict[str, Tensor]


class NotFinite(Exception):  # noqa: N818 - a finding, which the service words for whoever is to blame
    """An output for these inputs is not finite; ``tasks`` says of which tasks."""

    def __init__(self, tasks: list[str]) -> None:
        super().__init__(f"the output of {', '.join(tasks)} is not finite")
        self.tasks = tasks


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ran:
    """What became of one call: its outputs by task, ``(rows, ...)`` on the CPU, or what went wrong."""

    outputs: Outputs | None = None
    error: Exception | None = None


def run_batch(module: nn.Module, inputs: Sequence[Inputs], device: torch.device) -> list[Ran]:
    """Run calls of one network together; return what became of each, in order.

    What one call's inputs do to the network is not to hurt its neighbours: if the batch raises, each call is run alone.

    Raises:
        torch.OutOfMemoryError: Of the batch; nothing was answered, and it may be tried again when there is room.
    """
    try:
        return _run_together(module, inputs, device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a network raises is the answer to the call that made it
        if len(inputs) == 1:
            return [Ran(error=error)]
    _log.warning("a batch of %d calls failed and is run again call by call", len(inputs))
    return [run_batch(module, [one], device)[0] for one in inputs]


def _run_together(module: nn.Module, inputs: Sequence[Inputs], device: torch.device) -> list[Ran]:
    with torch.inference_mode():
        joined = inputs[0] if len(inputs) == 1 else tuple(torch.cat(parts) for parts in zip(*inputs, strict=True))
        outputs = {task: output.cpu() for task, output in module(*_on(device, joined)).items()}
        bad = [task for task, output in outputs.items() if not _is_finite(output)]
        if len(inputs) == 1:
            return [_checked(outputs, bad)]
        sizes = [len(one[0]) for one in inputs]
        parts = zip(*(output.split(sizes) for output in outputs.values()), strict=True)
        return [_checked(dict(zip(outputs, part, strict=True)), bad) for part in parts]


def _on(device: torch.device, tensors: Inputs) -> Inputs:
    return tensors if device.type == "cpu" else tuple(tensor.to(device, non_blocking=True) for tensor in tensors)


def _checked(outputs: Outputs, suspects: list[str]) -> Ran:
    bad = [task for task in suspects if not _is_finite(outputs[task])]
    return Ran(error=NotFinite(bad)) if bad else Ran(outputs=outputs)


def _is_finite(output: Tensor) -> bool:
    return not output.is_floating_point() or bool(torch.isfinite(output).all())
