"""The rules of a stored graph, checked before any of it runs: what it refers to exists, and operators get what they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from unified.submission.operators import (
    COUNTER,
    STATISTICS,
    Argument,
    Kind,
    Operator,
    RefusedOperatorError,
    resolve,
)
from unified.submission.umodel_format import (
    DTYPES,
    FLOATS,
    LAYOUTS,
    MAX_DEPTH,
    MEMORY_FORMATS,
    GraphRecord,
    Manifest,
    NodeRecord,
)

#: What a value can stand for where an operator takes this type: names of references, and a test of plain values.
_TAKES: dict[str, tuple[tuple[str, ...], Callable[[Any], bool]]] = {
    "Tensor": (("tensor", "number"), lambda value: isinstance(value, (bool, int, float))),
    "tensors": (("tensors",), lambda value: False),
    "int": (("number",), lambda value: isinstance(value, int)),
    "float": (("number",), lambda value: isinstance(value, (int, float))),
    "number": (("number",), lambda value: isinstance(value, (bool, int, float))),
    "bool": (("number",), lambda value: isinstance(value, bool)),
    "str": ((), lambda value: isinstance(value, str) and len(value) <= 200),
    "ScalarType": (("dtype",), lambda value: False),
    "Layout": (("layout",), lambda value: False),
    "Device": (("device",), lambda value: False),
    "MemoryFormat": (("memory_format",), lambda value: False),
    "Generator": ((), lambda value: False),
}

_SYMBOLS = {"dtype": DTYPES, "layout": LAYOUTS, "memory_format": MEMORY_FORMATS, "device": {"model": None}}


class _FaultError(ValueError):
    """One rule is broken."""


def graph_faults(graph: GraphRecord, manifest: Manifest) -> list[str]:
    """Return everything that is wrong with ``graph``, each as ``"node 3: …"``; empty when it may run."""
    return list(_Rules(graph, manifest).faults())


class _Rules:
    def __init__(self, graph: GraphRecord, manifest: Manifest) -> None:
        self._graph = graph
        self._inputs = {record.name for record in manifest.inputs}
        self._tensors = {record.name: record for record in manifest.tensors}
        self._num_constants = len(manifest.constants)
        self._kinds: list[Kind] = []  # what each node so far gives

    def faults(self) -> Iterator[str]:
        for index, node in enumerate(self._graph.nodes):
            try:
                self._kinds.append(self._check_node(node))
            except (_FaultError, RefusedOperatorError) as fault:
                yield f"node {index}: {fault}"
                self._kinds.append("tensor")  # go on, to report all that is wrong
        try:
            self._check_output(self._graph.output, 0)
        except _FaultError as fault:
            yield f"output: {fault}"
        for name, value in self._graph.writes:
            if name not in self._tensors or self._tensors[name].kind != "buffer":
                yield f"writes: {name[:100]!r} is not a buffer"
            try:
                self._check_plain("Tensor", value)
            except _FaultError as fault:
                yield f"writes: {fault}"

    def _check_node(self, node: NodeRecord) -> Kind:
        operator = resolve(node.op)
        given = self._bind(operator, node)
        for argument in operator.arguments:
            if argument.name in given:
                self._check_argument(operator, argument, given[argument.name])
        if node.op in STATISTICS:
            for position in STATISTICS[node.op]:
                self._check_statistics(operator, given.get(operator.arguments[position].name))
        if node.op == COUNTER:
            self._check_counter(node)
        if node.autocast is not None and node.autocast.dtype not in (None, *DTYPES):
            raise _FaultError(f"autocast to {str(node.autocast.dtype)[:50]!r}")
        return operator.result

    def _bind(self, operator: Operator, node: NodeRecord) -> dict[str, Any]:
        positional = [argument for argument in operator.arguments if not argument.keyword_only]
        if len(node.args) > len(positional):
            raise _FaultError(f"operator {operator.name!r} takes {len(positional)} arguments, got {len(node.args)}")
        given = {argument.name: value for argument, value in zip(positional, node.args, strict=False)}  # the rest have defaults
        names = {argument.name for argument in operator.arguments}
        for name, value in node.kwargs.items():
            if name not in names or name in given:
                raise _FaultError(f"operator {operator.name!r} takes no further argument {name[:50]!r}")
            given[name] = value
        for argument in operator.arguments:
            if argument.required and argument.name not in given:
                raise _FaultError(f"operator {operator.name!r} needs its argument {argument.name!r}")
        return given

    def _check_argument(self, operator: Operator, argument: Argument, value: Any) -> None:
        try:
            if value is None and argument.optional:
                return
            if argument.is_list and isinstance(value, list):
                for item in value:
                    # an optional list and a list of optionals are not told apart: PyTorch refuses the wrong one itself
                    if item is not None or not argument.optional:
                        self._check_plain(argument.base, item)
                return
            if argument.is_list and argument.base == "Tensor":
                self._check_plain("tensors", value)
                return
            self._check_plain(argument.base, value)
        except _FaultError as fault:
            raise _FaultError(f"argument {argument.name!r} of {operator.name!r}: {fault}") from None
        if argument.name == "pin_memory" and value is not False:
            raise _FaultError("pinned memory is not allowed")

    def _check_plain(self, base: str, value: Any) -> None:
        """Check one value that is not a list."""
        kinds, is_plain = _TAKES[base]
        kind = self._kind_of(value)
        if kind is None:
            fits = is_plain(value) and not (isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 63)
        else:
            fits = kind in kinds
        if not fits:
            raise _FaultError(f"expected {base}, got {str(value)[:100]}")

    def _kind_of(self, value: Any) -> str | None:
        """Return what a reference or symbol stands for, or None for a plain value."""
        if not isinstance(value, dict):
            return None
        if len(value) != 1:
            raise _FaultError(f"expected one key, got {str(value)[:100]}")
        ((key, target),) = value.items()
        if key == "node":
            if not _is_index(target, len(self._kinds)):
                raise _FaultError(f"refers to node {str(target)[:30]}, which does not come before")
            return self._kinds[target]
        if key == "float" and isinstance(target, str) and target in FLOATS:
            return "number"
        if key in _SYMBOLS and isinstance(target, str) and target in _SYMBOLS[key]:
            return key
        if not self._exists(key, target):
            raise _FaultError(f"unknown {str(key)[:30]} {str(target)[:100]!r}")
        return "tensor"

    def _exists(self, key: str, target: Any) -> bool:
        if key == "constant":
            return _is_index(target, self._num_constants)
        names = {"input": self._inputs, "tensor": self._tensors}.get(key, ())
        return isinstance(target, str) and target in names

    def _check_statistics(self, operator: Operator, value: Any) -> None:
        if value is not None and not self._is_buffer(value):
            raise _FaultError(f"operator {operator.name!r} would write its statistics to {str(value)[:100]}, not a buffer")

    def _check_counter(self, node: NodeRecord) -> None:
        target, *rest = node.args
        integer = self._is_buffer(target) and self._tensors[target["tensor"]].dtype.startswith("int")
        if not integer or node.kwargs or len(rest) != 1 or type(rest[0]) is not int:
            raise _FaultError(f"operator {COUNTER!r} may only add an integer to a buffer of integers")

    def _is_buffer(self, value: Any) -> bool:
        name = value.get("tensor") if isinstance(value, dict) else None
        return isinstance(name, str) and name in self._tensors and self._tensors[name].kind == "buffer"

    def _check_output(self, value: Any, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _FaultError(f"nested deeper than {MAX_DEPTH}")
        if value is None or isinstance(value, (bool, int, float, str)):
            return
        if not isinstance(value, dict) or len(value) != 1:
            raise _FaultError(f"expected a reference, a tuple, a list or a dict, got {str(value)[:100]}")
        ((key, content),) = value.items()
        if key not in {"tuple", "list", "dict"}:
            if self._kind_of(value) in {"dtype", "layout", "memory_format", "device"}:
                raise _FaultError(f"expected a tensor, got {str(value)[:100]}")
            return
        if not isinstance(content, list):
            raise _FaultError(f"expected a list of values, got {str(content)[:100]}")
        for item in content:
            self._check_output(_entry(item) if key == "dict" else item, depth + 1)


def _entry(item: Any) -> Any:
    if not isinstance(item, list) or len(item) != 2 or not isinstance(item[0], str):
        raise _FaultError(f"expected a key and a value, got {str(item)[:100]}")
    return item[1]


def _is_index(value: Any, length: int) -> bool:
    return type(value) is int and 0 <= value < length
