"""The weights of an archive, in the safetensors format: a header in JSON, then the bytes of the tensors one after the other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unified.submission.umodel_faults import MalformedError, malformed
from unified.submission.umodel_format import DTYPES, MAX_HEADER_BYTES, STORED_DTYPES, WEIGHTS
from unified.submission.umodel_json import parse_json

_LENGTH_BYTES = 8
_ALIGNMENT = 64
_CHUNK_BYTES = 16 << 20
_CODE = "E-TENSORS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where a tensor lies: bytes ``start`` to ``stop`` of the part."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(part: memoryview, expected: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Entry]:
    """Return where each tensor lies; they must be those ``expected`` (name to type and shape), and fill the part.

    Raises:
        MalformedError: If they do not.
    """
    header, begin = parse_header(part)
    if header.keys() != expected.keys():
        names = sorted(map(str, header.keys() ^ expected.keys()))
        raise _malformed("the tensors of the manifest", f"other names: {str(names)[:200]}")
    return entries_of(header, begin, len(part), expected)


def parse_header(part: memoryview) -> tuple[dict[str, Any], int]:
    """Return what the header says of each tensor, by name, and where it ends.

    Raises:
        MalformedError: If it is none.
    """
    length = int.from_bytes(part[:_LENGTH_BYTES], "little")
    begin = _LENGTH_BYTES + length
    if len(part) < _LENGTH_BYTES or begin > len(part) or length > MAX_HEADER_BYTES:
        raise _malformed("a header within the part", f"a header of {length} bytes")
    header = parse_json(WEIGHTS, bytes(part[_LENGTH_BYTES:begin]), code=_CODE, limit=MAX_HEADER_BYTES)
    if not isinstance(header, dict):
        raise _malformed("an object", type(header).__name__)
    header.pop("__metadata__", None)
    return header, begin


def entries_of(
    header: Mapping[str, Any], begin: int, size: int, expected: Mapping[str, tuple[str, tuple[int, ...]]]
) -> dict[str, Entry]:
    """Return where each tensor of a header lies that ends at ``begin``; together they must fill the ``size`` bytes.

    Raises:
        MalformedError: If they do not, or one is not of the type and shape that is ``expected``.
    """
    entries = {name: _entry(name, header[name], begin, *expected[name]) for name in expected}
    position = begin
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != position:
            raise _malformed(f"{name[:100]!r} at byte {position}", f"byte {entry.start}")
        position = entry.stop
    if position != size:
        raise _malformed(f"{position} bytes", f"{size} bytes")
    return entries


def read_tensor(part: memoryview, entry: Entry, order: tuple[int, ...] | None) -> Tensor:
    """Return a copy of a tensor in fresh memory, its dimensions laid out in ``order`` (outermost first)."""
    tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    if tensor.numel():
        source = torch.frombuffer(part[entry.start : entry.stop], dtype=torch.uint8)
        tensor.flatten().view(torch.uint8).copy_(source)
    if order is None or list(order) == sorted(order):
        return tensor
    inverse = [order.index(dim) for dim in range(len(order))]
    return tensor.permute(order).contiguous().permute(inverse)


def chunks_of(part: memoryview, entry: Entry) -> Iterator[Tensor]:
    """Yield a tensor's values piece by piece, flat, each piece in memory of its own: for a look at all of a large one."""
    for start in range(entry.start, entry.stop, _CHUNK_BYTES):
        piece = bytearray(part[start : min(start + _CHUNK_BYTES, entry.stop)])  # aligned, which the part need not be
        yield torch.frombuffer(piece, dtype=torch.uint8).view(DTYPES[entry.dtype])


def write_tensors(tensors: Mapping[str, Tensor], write: Callable[[bytes | memoryview], Any]) -> None:
    """Write tensors (on any device, in any layout) in the order given, piece by piece; the same bytes for the same tensors."""
    header: dict[str, Any] = {}
    position = 0
    for name, tensor in tensors.items():
        stop = position + tensor.numel() * tensor.element_size()
        dtype = STORED_DTYPES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % _ALIGNMENT)
    write(len(text).to_bytes(_LENGTH_BYTES, "little"))
    write(text)
    for tensor in tensors.values():
        for chunk in _chunks(tensor):
            write(chunk)


def _chunks(tensor: Tensor) -> Iterable[memoryview]:
    if not tensor.numel():
        return
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    content = flat.numpy().data
    for start in range(0, len(content), _CHUNK_BYTES):
        yield content[start : start + _CHUNK_BYTES]


def _entry(name: str, record: Any, begin: int, dtype: str, shape: tuple[int, ...]) -> Entry:
    """Check one entry of the header against the type and shape that the manifest gives."""
    keys = {"dtype", "shape", "data_offsets"}
    if not isinstance(record, dict) or record.keys() != keys:
        raise _malformed(f"{name[:100]!r} with {sorted(keys)}", str(record)[:100])
    if record["dtype"] != STORED_DTYPES[dtype] or record["shape"] != list(shape):
        wanted = f"{name[:100]!r} of {STORED_DTYPES[dtype]} {list(shape)}"
        raise _malformed(wanted, f"{record['dtype']} {record['shape']}"[:200])
    size = DTYPES[dtype].itemsize * math.prod(shape)
    offsets = record["data_offsets"]
    whole = isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int for offset in offsets)
    if not whole or offsets[0] < 0 or offsets[1] - offsets[0] != size:
        raise _malformed(f"{name[:100]!r} of {size} bytes", f"offsets {str(offsets)[:100]}")
    return Entry(dtype=dtype, shape=shape, start=begin + offsets[0], stop=begin + offsets[1])


def _malformed(expected: str, given: str) -> MalformedError:
    return malformed(_CODE, WEIGHTS, expected, given)
