"""The stage of tensors: what the manifest says of them, where they lie, and which values they may have."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from unified.submission.safetensors_part import Entry, chunks_of, read_header
from unified.submission.umodel_faults import Fault, refuse
from unified.submission.umodel_format import MANIFEST, STORED_DTYPES, WEIGHTS, Manifest, TensorRecord

_MAX_ELEMENTS = 1 << 63


def check_tensors(manifest: Manifest, weights: memoryview, *, finite: bool) -> dict[str, Entry]:
    """Return where each stored tensor lies; with ``finite``, parameters must hold no NaN and no infinity.

    Raises:
        MalformedError: With all that is wrong with what the manifest says, or with the header, or with the values.
    """
    refuse(_record_faults(manifest))
    entries = read_header(weights, manifest.stored())
    trained = {r.name for r in manifest.tensors if r.kind == "parameter"} if finite else set()
    refuse(_value_faults(weights, entries, trained))
    return entries


def shape_fault(shape: tuple[int, ...]) -> str | None:
    """Say what is wrong with a shape, or None: an empty tensor's other sizes must not overflow its strides, either.

    >>> shape_fault((0, 1 << 62, 4))
    'a shape of 2^64 elements'
    """
    elements = math.prod(max(size, 1) for size in shape)
    return f"a shape of 2^{elements.bit_length() - 1} elements" if elements >= _MAX_ELEMENTS else None


def _record_faults(manifest: Manifest) -> Iterator[Fault]:
    for record in manifest.tensors:
        for expected, given in _faults_of(record):
            yield _fault(f"{MANIFEST}.tensors.{record.name[:100]}", expected, given)
    for index, (dtype, shape) in enumerate(manifest.constants):
        if dtype not in STORED_DTYPES:
            yield _fault(f"{MANIFEST}.constants.{index}", f"a type of {sorted(STORED_DTYPES)}", repr(dtype)[:50])
        if (fault := shape_fault(shape)) is not None:
            yield _fault(f"{MANIFEST}.constants.{index}", "a shape that 64 bits can count", fault)
    for record in manifest.inputs:
        if (fault := shape_fault(record.shape)) is not None:
            yield _fault(f"{MANIFEST}.inputs.{record.name[:100]}", "a shape that 64 bits can count", fault)


def _faults_of(record: TensorRecord) -> Iterator[tuple[str, str]]:
    if record.dtype not in STORED_DTYPES:
        yield f"a type of {sorted(STORED_DTYPES)}", repr(record.dtype)[:50]
    if record.requires_grad and "float" not in record.dtype:
        yield "a floating-point type, as it is trained", repr(record.dtype)[:50]
    if record.kind == "parameter" and not record.persistent:
        yield "a parameter in the state dict, as all are", "one that is not persistent"
    if sorted(record.order) != list(range(len(record.shape))):
        yield "the order of all its dimensions", repr(record.order)
    if (fault := shape_fault(record.shape)) is not None:
        yield "a shape that 64 bits can count", fault


def _value_faults(weights: memoryview, entries: Mapping[str, Entry], trained: set[str]) -> Iterator[Fault]:
    for name, entry in entries.items():
        if entry.dtype == "bool" and any(int(piece.view(torch.uint8).amax()) > 1 for piece in chunks_of(weights, entry)):
            # PyTorch counts such a value as one in some places and as many in others
            yield _fault(WEIGHTS, f"{name[:100]!r} of bytes 0 and 1, as it is of truth values", "other bytes")
        if name in trained and "float" in entry.dtype:
            extremes = [_extremes(piece) for piece in chunks_of(weights, entry)]
            odd = [pair for pair in extremes if not all(map(math.isfinite, pair))]
            if odd:
                given = "NaN among them" if math.isnan(odd[0][0]) else f"values from {odd[0][0]:g} to {odd[0][1]:g}"
                yield Fault(code="E-FINITE", where=WEIGHTS, expected=f"{name[:100]!r} of finite values", given=given)


def _extremes(values: Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(values)
    return float(low), float(high)


def _fault(where: str, expected: str, given: str) -> Fault:
    return Fault(code="E-TENSORS", where=where, expected=expected, given=given)
