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
import re
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import nn

VERSION = 1
MANIFEST = "manifest.json"
GRAPHS = {"train": "graph.train.json", "eval": "graph.eval.json"}
WEIGHTS = "weights.safetensors"
PARTS = (MANIFEST, *GRAPHS.values(), WEIGHTS)

MAX_ARCHIVE_BYTES = 8 << 30
MAX_JSON_BYTES = 16 << 20
MAX_HEADER_BYTES = 100 << 20
MAX_NODES = 20_000
MAX_TENSORS = 50_000
MAX_RANK = 12
MAX_DEPTH = 8

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
LAYOUTS = {"strided": torch.strided}
MEMORY_FORMATS = {
    name: getattr(torch, name) for name in ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
}
FLOATS = {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}

#: The name of the one attribute that a loaded module has beyond those of ``nn.Module``.
STATE_ATTRIBUTE = "_umodel"

_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_TAKEN = frozenset(dir(nn.Module())) | {STATE_ATTRIBUTE}

Size = Annotated[int, Field(ge=0, lt=1 << 63)]
Shape = Annotated[tuple[Size, ...], Field(max_length=MAX_RANK)]


class MalformedError(ValueError):
    """Part of an archive is not what it should be: ``faults`` holds (where, what was expected, what came)."""

    def __init__(self, faults: Iterable[tuple[str, str, str]]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(f"{where}: expected {wanted}, got {got}" for where, wanted, got in self.faults))


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

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]
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
    tensors: Annotated[tuple[TensorRecord, ...], Field(max_length=MAX_TENSORS)]
    constants: Annotated[tuple[tuple[str, Shape], ...], Field(max_length=MAX_TENSORS)]
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

    nodes: Annotated[tuple[NodeRecord, ...], Field(max_length=MAX_NODES)]
    output: Any
    writes: tuple[tuple[str, Any], ...] = ()


_MANIFEST = TypeAdapter(Manifest)
_GRAPH = TypeAdapter(GraphRecord)


def name_fault(name: str) -> str | None:
    """Say what is wrong with the name of a parameter or buffer, or None.

    >>> name_fault("layers.0.weight")
    >>> name_fault("block.forward")
    "part 'forward' is taken by nn.Module"
    """
    if len(name) > 1000 or not _NAME.fullmatch(name):
        return "only letters, digits, '_', '-' and single dots may be used"
    parts = name.split(".")
    for part in parts:
        if part in _TAKEN or (part.startswith("__") and part.endswith("__")):
            return f"part {part!r} is taken by nn.Module"
    return None


def encode(record: Manifest | GraphRecord) -> bytes:
    """Write a record as JSON: the same bytes for the same record, whatever wrote it."""
    text = json.dumps(_plain(record), separators=(",", ":"), allow_nan=False)
    return text.encode()


def decode_manifest(raw: bytes) -> Manifest:
    """Read the manifest and check that it agrees with itself. Raises MalformedError with all faults of a stage."""
    manifest = _validate(_MANIFEST, MANIFEST, raw)
    faults = list(_manifest_faults(manifest))
    if faults:
        raise MalformedError(faults)
    return manifest


def decode_graph(part: str, raw: bytes) -> GraphRecord:
    """Read one graph; its operators and references are not checked here. Raises MalformedError."""
    return _validate(_GRAPH, part, raw)


def parse_json(part: str, raw: bytes, *, limit: int = MAX_JSON_BYTES) -> Any:
    """Parse JSON strictly: no key twice, no NaN, no huge integer, no abyss. Raises MalformedError."""

    def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) != len(pairs):
            raise ValueError("a key that stands twice in one object")
        return record

    def refuse_constant(text: str) -> Any:
        raise ValueError(f"the number {text}")

    def parse_int(text: str) -> int:
        if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 64:
            raise ValueError(f"an integer of {len(text)} digits")
        return int(text)

    if len(raw) > limit:
        raise MalformedError([(part, f"at most {limit} bytes", f"{len(raw)} bytes")])
    try:
        return json.loads(raw.decode(), object_pairs_hook=refuse_twice, parse_constant=refuse_constant, parse_int=parse_int)
    except (ValueError, RecursionError) as error:
        raise MalformedError([(part, "strict JSON", str(error)[:200])]) from error


def _validate(adapter: TypeAdapter, part: str, raw: bytes) -> Any:
    parse_json(part, raw)
    try:
        return adapter.validate_json(raw)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        raise MalformedError(
            (".".join([part, *map(str, fault["loc"])]), fault["msg"], repr(fault["input"])[:100]) for fault in found[:20]
        ) from error


def _manifest_faults(manifest: Manifest) -> Iterable[tuple[str, str, str]]:
    if set(manifest.parts) != {*PARTS} - {MANIFEST}:
        yield "manifest.json.parts", "the SHA-256 of every other part", repr(sorted(manifest.parts))[:200]
    if not manifest.inputs:
        yield "manifest.json.inputs", "at least one input", "none"
    if len({record.name for record in manifest.inputs}) != len(manifest.inputs):
        yield "manifest.json.inputs", "names that differ", repr([i.name for i in manifest.inputs])[:200]
    for dtype, where in [(i.dtype, i.name) for i in manifest.inputs]:
        if dtype not in STORED_DTYPES:
            yield f"manifest.json.inputs.{where}", f"a type of {sorted(STORED_DTYPES)}", repr(dtype)
    seen: dict[str, TensorRecord] = {}
    for record in manifest.tensors:
        yield from _tensor_faults(record, seen)
        seen[record.name] = record
    for index, (dtype, _) in enumerate(manifest.constants):
        if dtype not in STORED_DTYPES:
            yield f"manifest.json.constants.{index}", f"a type of {sorted(STORED_DTYPES)}", repr(dtype)


def _tensor_faults(record: TensorRecord, seen: dict[str, TensorRecord]) -> Iterable[tuple[str, str, str]]:
    where = f"manifest.json.tensors.{record.name[:100]}"
    fault = name_fault(record.name)
    if fault is not None:
        yield where, "a name that nn.Module allows", fault
    prefixes = record.name.split(".")
    if record.name in seen or any(".".join(prefixes[:n]) in seen for n in range(1, len(prefixes))):
        yield where, "a name of its own", "one that is taken, or that a tensor's name begins with"
    if record.dtype not in STORED_DTYPES:
        yield where, f"a type of {sorted(STORED_DTYPES)}", repr(record.dtype)
    if record.requires_grad and "float" not in record.dtype:
        yield where, "a floating-point type, as it is trained", repr(record.dtype)
    if sorted(record.order) != list(range(len(record.shape))):
        yield where, "the order of all its dimensions", repr(record.order)
    if record.tie is not None:
        yield from _tie_faults(where, record, seen.get(record.tie))


def _tie_faults(where: str, record: TensorRecord, other: TensorRecord | None) -> Iterable[tuple[str, str, str]]:
    if other is None or other.tie is not None:
        yield where, "a tie to an earlier tensor that is itself not tied", repr(record.tie)
    elif dataclasses.replace(other, name=record.name, tie=record.tie, persistent=record.persistent) != record:
        yield (
            where,
            f"the same kind, type and shape as {other.name!r} to which it is tied",
            repr(record)[:200],
        )


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
