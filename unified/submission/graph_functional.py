"""Turn an exported graph into node records without in-place writes.

An in-place operator becomes its functional counterpart, and whoever reads that memory afterwards, under whatever name or
view, reads the new value: each tensor knows the memory it lives in, and the view through which it sees it. A write through a
view is carried up to the whole (``select`` by ``select_scatter`` and so on), and other views of it are taken anew when they are
next read. What a buffer ends with is written to it after the last node. Only two kinds of writes stay: batch statistics, which
their operator updates itself, and counters of batches.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from unified.errors import ExportError
from unified.submission.graph_views import Memory, Scope, Value, functional_name, undo_view
from unified.submission.operators import COUNTER, RefusedOperatorError, resolve
from unified.submission.source_lines import line_in_text
from unified.submission.umodel_format import AutocastRecord, NodeRecord

_NUMBER_FUNCTIONS = {
    operator.add: "py.add",
    operator.sub: "py.sub",
    operator.mul: "py.mul",
    operator.floordiv: "py.floordiv",
    operator.truediv: "py.truediv",
    operator.mod: "py.mod",
    operator.neg: "py.neg",
    operator.eq: "py.eq",
    operator.ne: "py.ne",
    operator.lt: "py.lt",
    operator.le: "py.le",
    operator.gt: "py.gt",
    operator.ge: "py.ge",
    math.trunc: "py.int",
    math.floor: "py.floor",
    math.ceil: "py.ceil",
    torch.sym_max: "py.max",
    torch.sym_min: "py.min",
    torch.sym_int: "py.int",
    torch.sym_float: "py.float",
    torch.sym_not: "py.not",
    getattr(torch, "_sym_sqrt", math.sqrt): "py.sqrt",
}

_DROPOUTS = frozenset(
    getattr(torch.ops.aten, name).default for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
)

#: Operators that only check; the model was checked when it was exported.
_CHECKS = ("_assert", "_functional_assert", "sym_constrain")

#: Memory that is filled before it is read: zeros serve as well, and show nobody else's data.
_ZEROS = {"empty": "zeros.default", "empty_like": "zeros_like.default", "new_empty": "new_zeros.default"}

_SPELLINGS = {
    "__and__": "bitwise_and",
    "__or__": "bitwise_or",
    "__xor__": "bitwise_xor",
    "__lshift__": "bitwise_left_shift",
    "__rshift__": "bitwise_right_shift",
}


class Lowering:
    """Walks an exported graph once and collects node records."""

    def __init__(self) -> None:
        self.nodes: list[NodeRecord] = []
        self.refused: dict[str, str] = {}  #: message to the line that led to it
        self._values: dict[fx.Node, Any] = {}  # a Value, a reference to a number, or a list of them
        self._line = ""

    def run(self, graph: fx.Graph, inputs: list[Any], scope: Scope | None = None) -> list[Any]:
        """Walk ``graph``, whose placeholders hold ``inputs``; return what it gives, as in ``inputs``."""
        scope = scope or Scope()
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self._values.update(zip(placeholders, inputs, strict=True))
        for node in graph.nodes:
            self._line = line_in_text(node.meta.get("stack_trace") or "") or self._line
            if node.op == "call_function":
                self._add(node, scope)
            elif node.op == "output":
                results = node.args[0]
                results = results if isinstance(results, (tuple, list)) else (results,)
                return [self._values[r] if isinstance(r, fx.Node) else r for r in results]
        raise ExportError("PyTorch exported a graph without an output")

    def read(self, value: Any) -> Any:
        """Return a reference to the current content of ``value``, taking a view anew where its memory was written."""
        if not isinstance(value, Value):
            return value
        if value.parent is not None and value.version != value.memory.version:
            name, args, kwargs, scope = value.call
            value.reference = self.emit(name, args, kwargs, scope)
            value.version = value.memory.version
        return value.reference

    def emit(self, name: str, args: tuple, kwargs: Mapping[str, Any], scope: Scope) -> dict[str, int]:
        """Append a node and return the reference to its result."""
        try:
            resolve(name)
        except RefusedOperatorError as refusal:
            self.refused.setdefault(str(refusal), self._line)
        self.nodes.append(
            NodeRecord(
                op=name,
                args=tuple(self._encode(arg) for arg in args),
                kwargs={key: self._encode(arg) for key, arg in kwargs.items()},
                grad=scope.grad,
                autocast=scope.autocast,
            )
        )
        return {"node": len(self.nodes) - 1}

    def _add(self, node: fx.Node, scope: Scope) -> None:
        target = node.target
        if target is operator.getitem:
            self._add_item(node, scope)
        elif _only_checked(node):
            return
        elif target in _NUMBER_FUNCTIONS:
            self._values[node] = self.emit(_NUMBER_FUNCTIONS[target], node.args, {}, scope)
        elif isinstance(target, torch._ops.OpOverload):
            if torch.Tag.inplace_view in target.tags:  # changes what a tensor shows, not what it holds
                self._add_call(node, functional_name(target), scope)
            elif any(a.alias_info is not None and a.alias_info.is_write for a in target._schema.arguments):
                self._add_write(node, scope)
            else:
                self._add_call(node, str(target), scope)
        elif isinstance(target, torch._ops.HigherOrderOperator):
            self._add_region(node, scope)
        else:
            raise ExportError(f"{target} cannot be stored in a .umodel{self._where()}")

    def _add_region(self, node: fx.Node, scope: Scope) -> None:
        """Inline a region that runs without gradients, or under autocast."""
        name = getattr(node.target, "__name__", str(node.target))
        arguments: tuple[Any, ...] = node.args
        if name == "wrap_with_set_grad_enabled":
            enabled, body, *operands = arguments
            scope = Scope(grad=enabled, autocast=scope.autocast)
        elif name == "wrap_with_autocast":
            device_type, dtype, enabled, _cache, body, *operands = arguments
            region = AutocastRecord(
                device_type="cuda" if device_type == "cuda" else None,
                dtype=None if dtype is None else _dtype_name(dtype),
                enabled=enabled,
            )
            scope = Scope(grad=scope.grad, autocast=region)
        else:
            raise ExportError(f"torch.{name} cannot be stored in a .umodel{self._where()}")
        module = getattr(node.graph.owning_module, body.target)
        inputs = [self._values[o] if isinstance(o, fx.Node) else o for o in operands]
        self._values[node] = self.run(module.graph, inputs, scope)

    def _add_item(self, node: fx.Node, scope: Scope) -> None:
        arguments: tuple[Any, ...] = node.args
        source, index = arguments
        value = self._values[source]
        if isinstance(value, list):
            self._values[node] = value[index]
            return
        reference = self.emit("py.getitem", node.args, {}, scope)
        fake = value.fake[index]
        if value.parent is None:
            self._values[node] = Value(reference=reference, memory=Memory(kind="fresh"), fake=fake)
        else:
            call = ("py.getitem", node.args, {}, scope)
            self._values[node] = Value(
                reference=reference,
                memory=value.memory,
                fake=fake,
                parent=value,
                call=call,
                version=value.memory.version,
            )

    def _add_call(self, node: fx.Node, name: str, scope: Scope) -> None:
        fake = node.meta.get("val")
        name, args, kwargs = _canonical(name, node, fake)
        reference = self.emit(name, args, kwargs, scope)
        if not isinstance(fake, (Tensor, list, tuple)):
            self._values[node] = reference
            return
        parent = self._parent(node, fake)
        memory = Memory(kind="fresh") if parent is None else parent.memory
        self._values[node] = Value(
            reference=reference,
            memory=memory,
            fake=fake,
            parent=parent,
            call=(name, args, kwargs, scope),
            version=memory.version,
        )

    def _parent(self, node: fx.Node, fake: Any) -> Value | None:
        """Return the argument whose memory the result shares, which schemas do not always tell."""
        if _returns_its_input(node):
            return self._values[node.all_input_nodes[0]]
        first = fake if isinstance(fake, Tensor) else next((f for f in fake if isinstance(f, Tensor)), None)
        for source in node.all_input_nodes:
            value = self._values[source]
            other = value.fake if isinstance(value, Value) else None
            if isinstance(first, Tensor) and isinstance(other, Tensor) and _share_memory(first, other):
                return value
        return None

    def _add_write(self, node: fx.Node, scope: Scope) -> None:
        """Replace an operator that writes in place, or to an ``out`` argument, by its functional counterpart."""
        written: Any = node.kwargs.get("out", node.args[0])
        value = self._values[written]
        memory = value.memory
        if memory.kind in {"parameter", "constant"}:
            what = f"parameter {memory.name!r}" if memory.kind == "parameter" else "a tensor that is not a registered buffer"
            raise ExportError(f"forward writes to {what} with {node.target}, which a .umodel cannot do{self._where()}")
        self._values[node] = value
        if str(node.target) == COUNTER and _counts(value, node) and memory.version == 0:
            self.emit(COUNTER, node.args, {}, scope)
            return
        self._assign(value, self._written(node, value, scope), scope)

    def _written(self, node: fx.Node, value: Value, scope: Scope) -> Any:
        """Compute what an operator writes to ``value``."""
        assert isinstance(node.target, torch._ops.OpOverload), "only operators write"
        fakes = [self._values[n].fake for n in node.all_input_nodes if isinstance(self._values[n], Value)]
        mixed = any(fake.dtype != value.fake.dtype for fake in fakes if isinstance(fake, Tensor))
        name = functional_name(node.target)
        if name == "aten.copy.default":  # has no derivative
            source: Any = node.args[1]
            if mixed:
                source = self.emit("aten.to.dtype", (source, value.fake.dtype), {}, scope)
            source = self.emit("aten.expand_as.default", (source, self.read(value)), {}, scope)
            contiguous = {"memory_format": torch.contiguous_format}
            return self.emit("aten.clone.default", (source,), contiguous, scope)
        reference = self.emit(name, node.args, _with_defaults(name, node), scope)
        logical = name.split(".")[1].startswith(("eq", "ne", "lt", "le", "gt", "ge", "logical_"))
        if mixed or logical:
            reference = self.emit("aten.to.dtype", (reference, value.fake.dtype), {}, scope)
        return reference

    def _assign(self, value: Value, reference: Any, scope: Scope) -> None:
        """Give ``value`` new content, and carry it up to the whole of which it is a view."""

        def emit(name: str, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, int]:
            return self.emit(name, args, kwargs, scope)

        changed = [(value, reference)]
        while value.parent is not None:
            try:
                value, reference = undo_view(value, reference, self.read, emit)
            except NotImplementedError as error:
                raise ExportError(f"{error}{self._where()}") from None
            changed.append((value, reference))
        value.memory.version += 1
        for each, content in changed:
            each.reference, each.version = content, value.memory.version

    def _where(self) -> str:
        return f"\n  {self._line}" if self._line else ""

    def _encode(self, arg: Any) -> Any:
        """Write an argument as a value of the format."""
        if isinstance(arg, fx.Node):
            return self.read(self._values[arg])
        if isinstance(arg, (list, tuple)):
            return [self._encode(item) for item in arg]
        if isinstance(arg, float) and not math.isfinite(arg):
            return {"float": str(arg)}
        if arg is None or isinstance(arg, (bool, int, float, str, dict)):
            return arg
        if isinstance(arg, torch.device):
            return {"device": "model"}
        if isinstance(arg, torch.dtype):
            return {"dtype": _dtype_name(arg)}
        if isinstance(arg, torch.layout):
            return {"layout": str(arg).removeprefix("torch.")}
        if isinstance(arg, torch.memory_format):
            return {"memory_format": str(arg).removeprefix("torch.")}
        raise ExportError(f"an argument {arg!r} cannot be stored in a .umodel{self._where()}")


def _canonical(name: str, node: fx.Node, fake: Any) -> tuple[str, tuple, dict[str, Any]]:
    """Spell a call the one way that is allowed; make the default type explicit."""
    kwargs = {key: value for key, value in node.kwargs.items() if key not in {"pin_memory", "layout"}}
    _, base, overload = name.split(".", 2)
    if base in _ZEROS:
        name = f"aten.{_ZEROS[base]}"
        if base == "empty":
            kwargs.pop("memory_format", None)
    elif base in _SPELLINGS:
        name = f"aten.{_SPELLINGS[base]}.{overload}"
    schema = node.target._schema if isinstance(node.target, torch._ops.OpOverload) else None
    creates = schema is not None and not any("Tensor" in str(a.real_type) for a in schema.arguments)
    if creates and isinstance(fake, Tensor) and any(a.name == "dtype" for a in schema.arguments):
        kwargs["dtype"] = fake.dtype
    return name, node.args, kwargs


def _with_defaults(name: str, node: fx.Node) -> dict[str, Any]:
    """Return the keyword arguments, with those that have a default in the in-place operator but not in ``name``."""
    assert isinstance(node.target, torch._ops.OpOverload), "only operators write"
    kwargs: dict[str, Any] = {key: value for key, value in node.kwargs.items() if key != "out"}
    try:
        wanted = resolve(name).arguments[len(node.args) :]
    except RefusedOperatorError:
        return kwargs  # reported when it is emitted
    defaults = {a.name: a.default_value for a in node.target._schema.arguments if a.has_default_value()}
    missing = {a.name for a in wanted if a.required and a.name not in kwargs and a.name in defaults}
    return kwargs | {key: defaults[key] for key in missing}


def _only_checked(node: fx.Node) -> bool:
    """Whether a node is a check, or reckons with sizes for checks alone."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.partition("::")[2].startswith(_CHECKS)
    numbers = (bool, int, float, torch.SymBool, torch.SymInt, torch.SymFloat)
    return isinstance(node.meta.get("val"), numbers) and all(map(_only_checked, node.users))


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


def _returns_its_input(node: fx.Node) -> bool:
    """Whether this is a dropout that drops nothing, which hands on its input itself and not a copy."""
    if node.target not in _DROPOUTS:
        return False
    p, training = (*node.args, *node.kwargs.values())[1:]
    return bool(not training or p == 0)


def _counts(value: Value, node: fx.Node) -> bool:
    """Whether this adds an integer to a whole buffer of integers."""
    whole = value.memory.kind == "buffer" and value.parent is None
    integer = str(value.fake.dtype).startswith("torch.int")
    return whole and integer and not node.kwargs and len(node.args) == 2 and type(node.args[1]) is int


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
