"""The ``.umodel`` archive as records: what its parts are called, what its manifest and its graphs hold, and its limits.

The archive is a zip, stored and not deflated, of ``manifest.json``, ``graph.train.json``, ``graph.eval.json`` and
``weights.safetensors``. A graph is a list of nodes; a value in it (an argument, an output) is JSON:

- ``null``, a boolean, a number, a text, or a list of values stand for themselves;
- ``{"node": 3}``, ``{"input": "x"}``, ``{"tensor": "fc.weight"}`` and ``{"constant": 0}`` refer to an earlier node's
  result, an input, a parameter or buffer, and an unnamed constant;
- ``{"dtype": "float32"}``, ``{"layout": "strided"}``, ``{"memory_format": "channels_last"}``, ``{"float": "inf"}`` are what
  they say, and ``{"device": "model"}`` is wherever the model lives when it runs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, FailFast, Field, TypeAdapter

from unified.submission.umodel_faults import Fault, MalformedError, refuse
from unified.submission.umodel_json import parse_json, validate

VERSION = 1
MANIFEST = "manifest.json"
GRAPHS = {"train": "graph.train.json", "eval": "graph.eval.json"}
WEIGHTS = "weights.safetensors"
PARTS = (MANIFEST, *GRAPHS.values(), WEIGHTS)

MAX_ARCHIVE_BYTES = 8 << 30
MAX_HEADER_BYTES = 100 << 20
MAX_NODES = 20_000
MAX_TENSORS = 50_000
MAX_INPUTS = 1000
MAX_RANK = 12
MAX_DEPTH = 8
#: Elements of one list that is an argument, and values in a graph altogether.
MAX_LIST = 10_000
MAX_VALUES = 500_000

#: Types that a stored tensor may have, with their names in safetensors.
STORED_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
#: Types that a node may name.
DTYPES = {name: getattr(torch, name) for name in (*STORED_DTYPES, "complex64", "complex128")}
#: Types that an autocast region may compute in.
AUTOCAST_DTYPES = ("float16", "bfloat16", "float32")
LAYOUTS = {"strided": torch.strided}
MEMORY_FORMATS = {
    name: getattr(torch, name) for name in ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
}
FLOATS = {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}

Size = Annotated[int, Field(ge=0, lt=1 << 63)]
Shape = Annotated[tuple[Size, ...], Field(max_length=MAX_RANK), FailFast()]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InputRecord:
    """An input of the model: a tensor whose first dimension is the batch.

    Attributes:
        name: The parameter of the original ``forward`` that it is passed to.
        position: Its place among the positional arguments, or None where it can be given by name only.
        shape: Its shape without the batch.
        dtype: Its type as torch names it, e.g. ``"float32"``.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    name: str
    position: Size | None
    shape: Shape
    dtype: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecord:
    """A parameter or buffer, under its original name.

    Attributes:
        name: Its name in the state dict (or, not persistent, in ``named_buffers``).
        kind: What it is.
        dtype: Its type as torch names it.
        shape: Its shape.
        requires_grad: Whether it is trained.
        persistent: Whether it is part of the state dict.
        tie: The earlier name whose tensor this one is, if it is tied.
        order: Its dimensions from outermost to innermost in memory.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    name: str
    kind: Literal["parameter", "buffer"]
    dtype: str
    shape: Shape
    requires_grad: bool
    persistent: bool
    tie: str | None
    order: Shape


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an archive holds, readable without building the model.

    Attributes:
        version: Version of the format.
        torch: Version of PyTorch that wrote it.
        inputs: The model's inputs.
        tensors: Its parameters and buffers in the order of its state dict.
        constants: Shapes of its unnamed constants, stored as ``constant:0``, ``constant:1``, ….
        parts: SHA-256 of every other part.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    version: Literal[1]
    torch: str
    inputs: tuple[InputRecord, ...]
    tensors: tuple[TensorRecord, ...]
    constants: tuple[tuple[str, Shape], ...]
    parts: dict[str, str]

    @property
    def num_parameters(self) -> int:
        """Number of parameters, each tied one counted once."""
        own = (t for t in self.tensors if t.kind == "parameter" and t.tie is None)
        return sum(_numel(t.shape) for t in own)

    def stored(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name, type and shape of every tensor that the weights part must hold."""
        named = {t.name: (t.dtype, t.shape) for t in self.tensors if t.tie is None}
        return named | {f"constant:{index}": entry for index, entry in enumerate(self.constants)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AutocastRecord:
    """An autocast region that a node stands in; ``device_type`` is None for the model's own."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    device_type: Literal["cpu", "cuda"] | None
    dtype: str | None
    enabled: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """One operator call: ``args`` and ``kwargs`` are values; ``grad`` sets gradient recording for this node alone."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    grad: bool | None = None
    autocast: AutocastRecord | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GraphRecord:
    """One mode of a model.

    Attributes:
        nodes: Operator calls in order.
        output: A value, or ``{"tuple": […]}``, ``{"list": […]}`` or ``{"dict": [[key, value], …]}`` of them.
        writes: (buffer, value) pairs: what each buffer holds after a call.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    nodes: tuple[NodeRecord, ...]
    output: Any
    writes: tuple[tuple[str, Any], ...] = ()


_MANIFEST = TypeAdapter(Manifest)
_GRAPH = TypeAdapter(GraphRecord)


def encode(record: Manifest | GraphRecord) -> bytes:
    """Write a record as JSON: the same bytes for the same record, whatever wrote it."""
    text = json.dumps(_plain(record), separators=(",", ":"), allow_nan=False)
    return text.encode()


def decode_manifest(raw: bytes) -> Manifest:
    """Read the manifest; what its tensors and names are is not checked here. Raises MalformedError."""
    value = parse_json(MANIFEST, raw)
    version = value.get("version") if isinstance(value, dict) else None
    if type(version) is int and version != VERSION:
        remedy = "use a newer unified" if version > VERSION else "write the file again with unified.export"
        wanted = f"version {VERSION} of the format, which this reads"
        raise MalformedError(
            [Fault(code="E-VERSION", where=MANIFEST, expected=wanted, given=f"version {version}", remedy=remedy)]
        )
    _check_lengths(MANIFEST, value, inputs=MAX_INPUTS, tensors=MAX_TENSORS, constants=MAX_TENSORS)
    manifest: Manifest = validate(_MANIFEST, MANIFEST, raw)
    refuse(_manifest_faults(manifest))
    return manifest


def decode_graph(part: str, raw: bytes) -> GraphRecord:
    """Read one graph; its operators and references are not checked here. Raises MalformedError."""
    _check_lengths(part, parse_json(part, raw), nodes=MAX_NODES, writes=MAX_TENSORS)
    return validate(_GRAPH, part, raw)


def _check_lengths(part: str, record: Any, **limits: int) -> None:
    """Refuse lists that are too long before their items are looked at, each of which could be wrong in its own way."""
    if isinstance(record, dict):
        refuse(
            Fault(code="E-SCHEMA", where=f"{part}.{key}", expected=f"at most {limit} items", given=f"{len(record[key])}")
            for key, limit in limits.items()
            if isinstance(record.get(key), list) and len(record[key]) > limit
        )


def _manifest_faults(manifest: Manifest) -> Iterator[Fault]:
    if set(manifest.parts) != {*PARTS} - {MANIFEST}:
        yield _fault("parts", "the SHA-256 of every other part", repr(sorted(manifest.parts))[:200])
    for record in manifest.inputs:
        if record.dtype not in STORED_DTYPES:
            yield _fault(f"inputs.{record.name[:100]}", f"a type of {sorted(STORED_DTYPES)}", repr(record.dtype)[:50])


def _fault(where: str, expected: str, given: str) -> Fault:
    return Fault(code="E-SCHEMA", where=f"{MANIFEST}.{where}", expected=expected, given=given)


def _plain(record: Any) -> Any:
    """Turn records into dicts, leaving out what has its default value."""
    if dataclasses.is_dataclass(record):
        return {
            field.name: _plain(getattr(record, field.name))
            for field in dataclasses.fields(record)
            if not _is_default(field, getattr(record, field.name))
        }
    if isinstance(record, dict):
        return {key: _plain(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [_plain(value) for value in record]
    return record


def _is_default(field: dataclasses.Field, value: Any) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return value == field.default_factory()
    return field.default is not dataclasses.MISSING and value == field.default


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
