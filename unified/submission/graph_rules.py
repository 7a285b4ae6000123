"""The rules of a stored graph, checked before any of it runs: what it refers to exists, and operators get what they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from unified.submission.operators import (
    COUNTER,
    STATISTICS,
    Argument,
    Operator,
    RefusedOperatorError,
    resolve,
)
from unified.submission.operators import (
    Kind as OperatorKind,
)
from unified.submission.umodel_faults import Fault, refuse
from unified.submission.umodel_format import (
    AUTOCAST_DTYPES,
    DTYPES,
    FLOATS,
    GRAPHS,
    LAYOUTS,
    MAX_DEPTH,
    MAX_LIST,
    MAX_VALUES,
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


#: What a value is: as an operator gives it, or "any" for what a node gives whose fault is told elsewhere.
Kind = OperatorKind | Literal["any"]


class _FaultError(ValueError):
    """One rule is broken: what was expected, what came."""


def check_graphs(graphs: Mapping[str, GraphRecord], manifest: Manifest) -> None:
    """Check the graphs of both modes.

    Raises:
        MalformedError: With all that is wrong with what they refer to and give to operators; or, where nothing is, with all
            operators that are not allowed.
    """
    rules = [_Rules(GRAPHS[mode], graph, manifest) for mode, graph in graphs.items()]
    faults = [fault for each in rules for fault in each.faults()]
    if not faults:
        faults = list(_untrained(graphs, manifest))
    for code in ("E-GRAPH", "E-OP"):
        refuse(fault for fault in faults if fault.code == code)


def _untrained(graphs: Mapping[str, GraphRecord], manifest: Manifest) -> Iterator[Fault]:
    """Yield parameters that are trained by name but used in evaluation alone: another model would be returned than trained."""
    own = {record.name: record.tie or record.name for record in manifest.tensors}
    used = {mode: {own[name] for name in _tensor_names(graph)} for mode, graph in graphs.items()}
    for record in manifest.tensors:
        if record.requires_grad and record.kind == "parameter" and record.name in used["eval"] - used["train"]:
            wanted = "a trained parameter to be used in training as well"
            yield _fault("E-GRAPH", GRAPHS["eval"], wanted, f"{record.name[:100]!r}, which only evaluation uses")


def _tensor_names(graph: GraphRecord) -> set[str]:
    """Return the names of the parameters and buffers that a well-formed graph refers to."""
    values: list[Any] = [graph.output, *(value for _, value in graph.writes)]
    for node in graph.nodes:
        values += [*node.args, *node.kwargs.values()]
    names = set()
    while values:
        value = values.pop()
        if isinstance(value, list):
            values += value
        elif isinstance(value, dict):
            if "tensor" in value:
                names.add(value["tensor"])
            else:
                values += [inner for inner in value.values() if isinstance(inner, list)]
    return names


class _Rules:
    def __init__(self, part: str, graph: GraphRecord, manifest: Manifest) -> None:
        self._part = part
        self._graph = graph
        self._inputs = {record.name for record in manifest.inputs}
        self._tensors = {record.name: record for record in manifest.tensors}
        self._num_constants = len(manifest.constants)
        self._kinds: list[Kind] = []  # what each node so far gives

    def faults(self) -> Iterator[Fault]:
        num_values = _count([self._graph.output, self._graph.writes, [[n.args, *n.kwargs.values()] for n in self._graph.nodes]])
        if num_values > MAX_VALUES:
            yield _fault("E-GRAPH", self._part, f"at most {MAX_VALUES} values", f"{num_values}")
            return
        for index, node in enumerate(self._graph.nodes):
            where = f"{self._part}: node {index}"
            try:
                self._kinds.append(self._check_node(node))
            except _FaultError as fault:
                yield _fault("E-GRAPH", where, *fault.args)
                self._kinds.append("any")  # go on, to report all that is wrong
            except RefusedOperatorError as fault:
                yield _fault("E-OP", where, "an operator of the list of allowed ones", str(fault))
                self._kinds.append("any")
        try:
            self._check_output(self._graph.output, 0)
        except _FaultError as fault:
            yield _fault("E-GRAPH", f"{self._part}: output", *fault.args)
        yield from self._write_faults()

    def _write_faults(self) -> Iterator[Fault]:
        written = set()
        for name, value in self._graph.writes:
            where = f"{self._part}: writes"
            record = self._tensors.get(name)
            if record is None or record.kind != "buffer":
                yield _fault("E-GRAPH", where, "a buffer to write to", f"{name[:100]!r}, which is none")
            elif (record.tie or name) in written:
                yield _fault("E-GRAPH", where, "one value for each buffer", f"another one for {name[:100]!r}")
            else:
                written.add(record.tie or name)
            try:
                kind = self._kind_of(value)
            except _FaultError as fault:
                yield _fault("E-GRAPH", where, *fault.args)
                continue
            if kind not in {"tensor", "any"}:
                yield _fault("E-GRAPH", where, "a tensor to write", _shown(value))

    def _check_node(self, node: NodeRecord) -> Kind:
        try:
            operator = resolve(node.op)
        except RefusedOperatorError:
            self._check_references([*node.args, *node.kwargs.values()])
            raise
        given = self._bind(operator, node)
        for argument in operator.arguments:
            if argument.name in given:
                self._check_argument(operator, argument, given[argument.name])
        if node.op in STATISTICS:
            for position in STATISTICS[node.op]:
                self._check_statistics(operator, given.get(operator.arguments[position].name))
        if node.op == COUNTER:
            self._check_counter(node)
        if node.autocast is not None and node.autocast.dtype not in (None, *AUTOCAST_DTYPES):
            raise _FaultError(f"autocast to one of {AUTOCAST_DTYPES}", f"to {node.autocast.dtype!r}"[:50])
        return operator.result

    def _check_references(self, values: list[Any]) -> None:
        """Check what the arguments of a refused operator refer to, so that all of a stage is told."""
        for value in values:
            for item in value if isinstance(value, list) else [value]:
                self._kind_of(item)

    def _bind(self, operator: Operator, node: NodeRecord) -> dict[str, Any]:
        positional = [argument for argument in operator.arguments if not argument.keyword_only]
        if len(node.args) > len(positional):
            raise _FaultError(f"at most {len(positional)} arguments of {operator.name!r}", f"{len(node.args)}")
        given = {argument.name: value for argument, value in zip(positional, node.args, strict=False)}  # the rest have defaults
        names = {argument.name for argument in operator.arguments}
        for name, value in node.kwargs.items():
            if name not in names or name in given:
                raise _FaultError(f"arguments that {operator.name!r} takes, each once", f"a further one, {name[:50]!r}")
            given[name] = value
        for argument in operator.arguments:
            if argument.required and argument.name not in given:
                raise _FaultError(f"{operator.name!r} with its argument {argument.name!r}", "none")
        return given

    def _check_argument(self, operator: Operator, argument: Argument, value: Any) -> None:
        if value is None and argument.optional:
            return
        label = f" as argument {argument.name!r} of {operator.name!r}"
        if argument.name == "pin_memory" and value is not False:
            raise _FaultError("false" + label, _shown(value))
        if argument.is_list and isinstance(value, list):
            if len(value) > MAX_LIST:
                raise _FaultError(f"at most {MAX_LIST} values{label}", f"{len(value)}")
            for item in value:
                # an optional list and a list of optionals are not told apart: PyTorch refuses the wrong one itself
                if item is not None or not argument.optional:
                    self._check_plain(argument.base, item, label)
        elif argument.is_list and argument.base == "Tensor":
            self._check_plain("tensors", value, label)
        else:
            self._check_plain(argument.base, value, label)

    def _check_plain(self, base: str, value: Any, label: str) -> None:
        """Check one value that is not a list."""
        kinds, is_plain = _TAKES[base]
        kind = self._kind_of(value)
        if kind is None:
            fits = is_plain(value) and not (isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 63)
        else:
            fits = kind in kinds or kind == "any"
        if not fits:
            raise _FaultError(f"{base}{label}", _shown(value))

    def _kind_of(self, value: Any) -> str | None:
        """Return what a reference or symbol stands for, or None for a plain value; "any" for what a refused node gives."""
        if not isinstance(value, dict):
            return None
        if len(value) != 1:
            raise _FaultError("a reference of one key", _shown(value))
        ((key, target),) = value.items()
        if key == "node":
            if not _is_index(target, len(self._kinds)):
                raise _FaultError("a reference to a node that comes before", f"node {_shown(target)}")
            return self._kinds[target]
        if key == "float" and isinstance(target, str) and target in FLOATS:
            return "number"
        if key in _SYMBOLS and isinstance(target, str) and target in _SYMBOLS[key]:
            return key
        if not self._exists(key, target):
            raise _FaultError("a reference to what there is", f"unknown {key[:30]} {_shown(target)}")
        return "tensor"

    def _exists(self, key: str, target: Any) -> bool:
        if key == "constant":
            return _is_index(target, self._num_constants)
        names = {"input": self._inputs, "tensor": self._tensors}.get(key, ())
        return isinstance(target, str) and target in names

    def _check_statistics(self, operator: Operator, value: Any) -> None:
        if value is not None and not self._is_buffer(value):
            raise _FaultError(f"a buffer for the statistics that {operator.name!r} writes", f"{_shown(value)}, not a buffer")

    def _check_counter(self, node: NodeRecord) -> None:
        target, *rest = node.args
        integer = self._is_buffer(target) and self._tensors[target["tensor"]].dtype.startswith("int")
        if not integer or node.kwargs or len(rest) != 1 or type(rest[0]) is not int:
            raise _FaultError(f"{COUNTER!r} to add an integer to a buffer of integers", _shown([node.args, node.kwargs]))

    def _is_buffer(self, value: Any) -> bool:
        name = value.get("tensor") if isinstance(value, dict) else None
        return isinstance(name, str) and name in self._tensors and self._tensors[name].kind == "buffer"

    def _check_output(self, value: Any, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _FaultError(f"values nested at most {MAX_DEPTH} deep", "deeper ones")
        if value is None or isinstance(value, (bool, int, float, str)):
            return
        if not isinstance(value, dict) or len(value) != 1:
            raise _FaultError("a reference, a tuple, a list or a dict", _shown(value))
        ((key, content),) = value.items()
        if key not in {"tuple", "list", "dict"}:
            if self._kind_of(value) in {"dtype", "layout", "memory_format", "device"} or key == "float":
                raise _FaultError("a tensor", _shown(value))
            return
        if not isinstance(content, list):
            raise _FaultError("a list of values", _shown(content))
        for item in content:
            self._check_output(_entry(item) if key == "dict" else item, depth + 1)


def _entry(item: Any) -> Any:
    if not isinstance(item, list) or len(item) != 2 or not isinstance(item[0], str):
        raise _FaultError("a key and a value", _shown(item))
    return item[1]


def _is_index(value: Any, length: int) -> bool:
    return type(value) is int and 0 <= value < length


def _count(values: list[Any]) -> int:
    """Count what is in lists and dicts inside each other."""
    level, total = [values], 0
    while level:
        level = [
            item
            for value in level
            if isinstance(value, (list, tuple, dict))
            for item in (value.values() if isinstance(value, dict) else value)
        ]
        total += len(level)
    return total


def _shown(value: Any) -> str:
    return str(value)[:100]


def _fault(code: str, where: str, expected: str, given: str) -> Fault:
    return Fault(code=code, where=where, expected=expected, given=given)
