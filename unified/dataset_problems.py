"""What is refused in a dataset, and in which words; who it belongs to is added at the border, once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from unified.errors import InvalidSubmission, Problem

Inputs = torch.Tensor | dict[str, torch.Tensor]

#: What libraries raise on files that are damaged or hostile; ``InvalidSubmission`` is none of them.
READ_ERRORS = (
    OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, EOFError,
    MemoryError, ImportError, AssertionError, StopIteration,
)  # fmt: skip

DTYPES = frozenset({
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
})  # fmt: skip

CHUNK_BYTES = 1 << 24


def data_problem(expected: str, given: str, remedy: str, *, field: str = "", code: str = "E-DATA") -> Problem:
    """Return a problem that does not yet say whose it is; see :func:`blamed_on`."""
    return Problem(code=code, job="", field=field, expected=expected, given=given, remedy=remedy)


def refusal(expected: str, given: str, remedy: str, *, field: str = "") -> InvalidSubmission:
    """Return the error for one such problem."""
    return InvalidSubmission([data_problem(expected, given, remedy, field=field)])


def reason(error: BaseException) -> str:
    """Return the first line of ``error``, short enough for a message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:240]


@contextmanager
def blamed_on(job: str, field: str) -> Iterator[None]:
    """Complete the problems raised inside with their job, and with ``field`` before their own field."""
    try:
        yield
    except InvalidSubmission as error:
        raise InvalidSubmission(
            replace(problem, job=job, field=f"{field}: {problem.field}" if problem.field else field)
            for problem in error.problems
        ) from None


def named_tensors(inputs: Inputs, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the tensors under the names they have in a tensor file, in their order."""
    if isinstance(inputs, torch.Tensor):
        return {"inputs": inputs, "targets": targets}
    return {**{f"inputs.{name}": tensor for name, tensor in inputs.items()}, "targets": targets}


def row_chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield consecutive views of ``tensor`` along its first axis, of about 16 MiB, at least one row each."""
    row_bytes = max(1, tensor[0].numel() * tensor.element_size()) if len(tensor) else 1
    yield from tensor.split(max(1, CHUNK_BYTES // row_bytes))


def form_problems(inputs: Inputs, targets: torch.Tensor) -> list[Problem]:
    """Return what is wrong with kinds, dtypes and shapes; no element is read."""
    tensors = named_tensors(inputs, targets)
    problems = [p for name, tensor in tensors.items() for p in _tensor_problems(name, tensor)]
    if problems:
        return problems
    lengths = {name: len(tensor) for name, tensor in tensors.items()}
    if len(set(lengths.values())) > 1:
        given = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        remedy = "write one target for each input"
        return [data_problem("inputs and targets of equal length (first axis)", given, remedy)]
    if not len(targets):
        return [data_problem("at least 1 sample", "0 samples", "check how the data was written")]
    return []


def value_problems(inputs: Inputs, targets: torch.Tensor) -> list[Problem]:
    """Return the tensors that hold NaN or infinity; reads every floating-point element once, in chunks."""
    return [
        data_problem(
            "finite numbers",
            f"NaN or infinity, first in sample {row}",
            "leave such samples out, or replace the values, before writing the file",
            field=name,
        )
        for name, tensor in named_tensors(inputs, targets).items()
        if (row := _first_bad_row(tensor)) is not None
    ]


def _tensor_problems(name: str, tensor: torch.Tensor) -> list[Problem]:
    def problem(expected: str, given: str, remedy: str) -> list[Problem]:
        return [data_problem(expected, given, remedy, field=name)]

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        given = "a quantized tensor" if tensor.is_quantized else f"layout {tensor.layout}"
        return problem("a dense tensor", given, "call .to_dense() or .dequantize() before saving")
    if tensor.device.type != "cpu":
        return problem("values", f"a tensor on device {tensor.device}", "save the tensor from the CPU")
    if tensor.dtype not in DTYPES:
        known = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in DTYPES))
        return problem(f"a dtype of {known}", str(tensor.dtype), "convert with .to(dtype) before saving")
    if tensor.dim() == 0:
        return problem("samples along the first axis", "a single number", "add the axis with [None]")
    if _overlaps(tensor):
        given = f"shape {tuple(tensor.shape)} with strides {tensor.stride()}, which repeats elements"
        return problem("an element in memory for each index", given, "call .contiguous() before saving")
    return []


def _overlaps(tensor: torch.Tensor) -> bool:
    """Whether two indices may be one element: a file of a few bytes must not stand for terabytes."""
    extent = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride < extent:
                return True
            extent = stride * size
    return False


def _first_bad_row(tensor: torch.Tensor) -> int | None:
    if not tensor.is_floating_point():
        return None
    start = 0
    for chunk in row_chunks(tensor):
        finite = torch.isfinite(chunk)
        if not finite.all():
            return start + int((~finite.reshape(len(chunk), -1).all(dim=1)).nonzero()[0])
        start += len(chunk)
    return None
