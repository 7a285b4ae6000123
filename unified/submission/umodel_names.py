"""The names in an archive: of tensors, which become attributes of modules, and of inputs and outputs, which do not."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from unified.submission.interpreter import STATE_ATTRIBUTE, ArchiveModule
from unified.submission.umodel_faults import Fault
from unified.submission.umodel_format import GRAPHS, MANIFEST, GraphRecord, Manifest, TensorRecord

MAX_NAME = 500
#: Modules inside each other, and modules altogether: each part of a name makes one, which costs some kilobytes.
MAX_NESTING = 32
MAX_MODULES = 50_000
MAX_LABEL = 100

_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_LABEL = re.compile(r"[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*")
_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TAKEN = frozenset(dir(nn.Module()))
#: What the module that is built has beside that: taken at the beginning of a name only, as it is made of plain modules below.
_OWN = frozenset(vars(ArchiveModule)) | {STATE_ATTRIBUTE}
_TAKEN_LABELS = frozenset({"self", "forward"})
_CHARACTERS = "only letters, digits, '_', '-' and single dots may be used"


def name_fault(name: str) -> str | None:
    """Say what is wrong with the name of a parameter or buffer, or None.

    >>> name_fault("layers.0.weight")
    >>> name_fault("block.forward")
    "part 'forward' is taken by nn.Module"
    """
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        return f"{_CHARACTERS}, {MAX_NAME} at most"
    parts = name.split(".")
    if len(parts) > MAX_NESTING:
        return f"{len(parts)} parts; at most {MAX_NESTING} modules may lie inside each other"
    taken = next((part for part in parts if part in _TAKEN or _is_dunder(part)), parts[0] if parts[0] in _OWN else None)
    return None if taken is None else f"part {taken!r} is taken by nn.Module"


def label_fault(label: str) -> str | None:
    """Say what is wrong with the key of an output, or None; it becomes no attribute, so it may be called like one.

    >>> label_fault("type")
    >>> label_fault("__class__")
    "'__class__' is taken"
    """
    if len(label) > MAX_LABEL or not _LABEL.fullmatch(label):
        return f"only letters, digits, '_', single dots and dashes may be used, {MAX_LABEL} at most"
    return f"{label!r} is taken" if label in _TAKEN_LABELS or _is_dunder(label) else None


def name_faults(manifest: Manifest, graphs: dict[str, GraphRecord]) -> Iterator[Fault]:
    """Yield what is wrong with the names of inputs, tensors, ties and the keys of outputs."""
    if not manifest.inputs:
        yield _fault(f"{MANIFEST}.inputs", "at least one input", "none")
    names = set[str]()
    for record in manifest.inputs:
        fault = label_fault(record.name) or (None if _PARAMETER.fullmatch(record.name) else "it is no name of a parameter")
        if fault is not None or record.name in names:
            yield _fault(f"{MANIFEST}.inputs", "a name that a parameter of forward may have", fault or "one that is taken")
        names.add(record.name)
    positions = [record.position for record in manifest.inputs if record.position is not None]
    if len(set(positions)) != len(positions):
        yield _fault(f"{MANIFEST}.inputs", "each position once", repr(positions)[:100])
    yield from _tensor_name_faults(manifest.tensors)
    for mode, graph in graphs.items():
        for key in _keys(graph.output, 0):
            if (fault := label_fault(key)) is not None:
                yield _fault(f"{GRAPHS[mode]}.output", "a key that an output may have", fault)


def _tensor_name_faults(tensors: tuple[TensorRecord, ...]) -> Iterator[Fault]:
    seen: dict[str, TensorRecord] = {}
    modules: set[str] = set()
    for record in tensors:
        where = f"{MANIFEST}.tensors.{record.name[:100]}"
        fault = name_fault(record.name)
        if fault is not None:
            yield _fault(where, "a name that nn.Module allows", fault)
            continue
        owners = [record.name[:place] for place, letter in enumerate(record.name) if letter == "."]
        if record.name in seen or record.name in modules or any(owner in seen for owner in owners):
            yield _fault(where, "a name of its own", "one that is taken, or that begins with a tensor's name")
        modules.update(owners)
        if record.tie is not None:
            yield from _tie_faults(where, record, seen.get(record.tie))
        seen[record.name] = record
    if len(modules) > MAX_MODULES:
        yield _fault(f"{MANIFEST}.tensors", f"names in at most {MAX_MODULES} modules", f"{len(modules)}")


def _tie_faults(where: str, record: TensorRecord, other: TensorRecord | None) -> Iterator[Fault]:
    if other is None or other.tie is not None:
        yield _fault(where, "a tie to an earlier tensor that is itself not tied", repr(record.tie)[:100])
        return
    differing = [
        field
        for field in ("kind", "dtype", "shape", "requires_grad", "order")
        if getattr(record, field) != getattr(other, field)
    ]
    if differing:
        yield _fault(where, f"what {other.name[:100]!r} is, to which it is tied", f"another {', '.join(differing)}")


def _keys(value: object, depth: int) -> Iterator[str]:
    """Yield the keys of the dicts in an output, as far as it is well formed: the rules of graphs check that it is."""
    if not isinstance(value, dict) or depth > MAX_NESTING:
        return
    for kind, content in value.items():
        if kind in {"tuple", "list", "dict"} and isinstance(content, list):
            for item in content:
                pair = item if kind == "dict" and isinstance(item, list) and len(item) == 2 else (None, item)
                if isinstance(pair[0], str):
                    yield pair[0]
                yield from _keys(pair[1], depth + 1)


def _is_dunder(part: str) -> bool:
    return part.startswith("__") and part.endswith("__")


def _fault(where: str, expected: str, given: str) -> Fault:
    return Fault(code="E-NAMES", where=where, expected=expected, given=given)
