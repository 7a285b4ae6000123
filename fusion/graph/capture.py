"""Take a model's operators with ``torch.export``, in train or eval mode, without touching the model (design 3.1, steps 1-3)."""

from __future__ import annotations

import dataclasses
import io
import logging
import sysconfig
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fusion.graph.borrowing import borrowed, tensors_of
from fusion.graph.captured import Captured, from_program, plain
from fusion.graph.errors import CaptureError

TRACED_BATCH = 2
STATIC_BATCH = 13  # no usual size is a multiple of it, so that its literals are seen for what they are


def capture(
    model: nn.Module, inputs: tuple[Tensor, ...], names: tuple[str, ...] | None, *, training: bool, label: str
) -> Captured:
    """Take the operators of ``model`` in one mode.

    Args:
        model: Is left as it is, mode included.
        inputs: Example inputs, the batch in dimension 0, at least one sample.
        names: Keyword names of the inputs; None if the model takes them by position.
        training: Which mode.
        label: Name of the model in messages.

    Raises:
        CaptureError: If ``torch.export`` cannot take it.
    """
    tensors = tensors_of(model)
    pointers = {tensor.data_ptr() for tensor in tensors.values() if tensor.numel()}
    for is_lent in (False, True):
        with borrowed(model, training=training, is_lent=is_lent) as used:
            program = _export_somehow(_Plain(used, names), inputs, label)
        # a tensor of the model among the constants was reached past the module
        if not any(constant.data_ptr() in pointers for constant in _real(program.constants)):
            break
    captured = from_program(program, tensors, prefix="model.")
    return dataclasses.replace(captured, is_lent=is_lent)


def batch_size(inputs: tuple[Tensor, ...]) -> int:
    """Return the batch of example inputs: dimension 0 of the first that has dimensions."""
    for value in inputs:
        if value.ndim and value.shape[0]:
            return value.shape[0]
    raise CaptureError("example inputs have no batch dimension; give at least one tensor of shape (batch, …), batch 1 or more")


def at_batch(inputs: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    """Return the inputs with ``size`` samples, repeated in turn where there are fewer. Inputs without the batch stay."""
    batch = batch_size(inputs)
    index = torch.arange(size) % batch
    is_batched = [value.ndim > 0 and value.shape[0] == batch for value in inputs]
    return tuple(
        value.index_select(0, index.to(value.device)) if batched else value
        for value, batched in zip(inputs, is_batched, strict=True)
    )


def call(model: nn.Module, inputs: tuple[Tensor, ...], names: tuple[str, ...] | None) -> Any:
    """Return the output of ``model`` for raw inputs, given by ``names`` or by position."""
    return model(*inputs) if names is None else model(**dict(zip(names, inputs, strict=True)))


class _Plain(nn.Module):
    """The model as ``torch.export`` likes it best: flat tensors in, plain Python out."""

    def __init__(self, model: nn.Module, names: tuple[str, ...] | None) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Any:
        before = [(module, name, buffer) for module in self.model.modules() for name, buffer in module._buffers.items()]
        output = plain(call(self.model, inputs, self.names))
        with torch.no_grad():
            for module, name, buffer in before:
                present = module._buffers.get(name)
                if buffer is not None and present is not None and present is not buffer:
                    buffer.copy_(present)  # export would forget a buffer that forward replaces by a new tensor
                    module._buffers[name] = buffer
        return output


def _export_somehow(wrapper: _Plain, inputs: tuple[Tensor, ...], label: str) -> ExportedProgram:
    """Export for any batch; where the model does not let itself, for a batch that is easily told from other sizes."""
    failures: list[BaseException] = []
    for size, is_dynamic in ((TRACED_BATCH, True), (STATIC_BATCH, False), (batch_size(inputs), False)):
        try:
            program = _export(wrapper, at_batch(inputs, size), size, is_dynamic=is_dynamic)
        except Exception as error:  # noqa: BLE001  export raises whatever the model or the tracer does
            failures.append(error)
            if _is_branch(error):
                break
        else:
            if not is_dynamic or from_program(program).static_batch is None:
                return program
    raise _explained(failures[0] if failures else None, label)


def _export(wrapper: nn.Module, inputs: tuple[Tensor, ...], size: int, *, is_dynamic: bool) -> ExportedProgram:
    shapes = None
    if is_dynamic:
        batched = {0: Dim.AUTO}
        shapes = (tuple(batched if value.ndim and value.shape[0] == size else None for value in inputs),)
    with warnings.catch_warnings(), torch.enable_grad(), _quiet():
        warnings.simplefilter("ignore")  # of attributes set in forward: they are set on a copy
        return torch.export.export(wrapper, inputs, dynamic_shapes=shapes, strict=False)


def _real(constants: Mapping[str, Any]) -> list[Tensor]:
    return [constant for constant in constants.values() if isinstance(constant, Tensor) and constant.numel()]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer from logging a graph beside the error that it raises."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    was = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(was)


def _explained(error: BaseException | None, label: str) -> CaptureError:
    if error is None:
        return CaptureError(f"model '{label}' does not let its batch vary")
    place = _users_line(error)
    if _is_branch(error):
        return CaptureError(
            f"model '{label}': forward branches on a tensor value at {place}; torch.export cannot capture it. "
            "Use torch.where or torch.cond, or move it out of forward"
        )
    first = next((line for line in str(error).splitlines() if line.strip()), "no message")
    return CaptureError(f"model '{label}': torch.export cannot capture its forward at {place}: {type(error).__name__}: {first}")


def _is_branch(error: BaseException) -> bool:
    text = f"{type(error).__name__}: {error}"
    return any(word in text for word in ("data-dependent", "DataDependent", "unbacked", "dynamic control flow"))


def _users_line(error: BaseException) -> str:
    """Return file:line of the last frame outside of torch, of Python and of this package."""
    found = "an unknown line"
    seen: BaseException | None = error
    while seen is not None:
        for frame in traceback.extract_tb(seen.__traceback__):
            if not _is_ours(frame.filename):
                found = f"{frame.filename}:{frame.lineno}"
        seen = seen.__cause__ or seen.__context__
    return found


def _is_ours(file: str) -> bool:
    is_library = file.startswith(sysconfig.get_paths()["stdlib"]) and "site-packages" not in file
    return is_library or file.startswith((str(Path(torch.__file__).parent), str(Path(__file__).parent), "<"))
