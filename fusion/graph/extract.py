"""Take the nodes of one block out of an analyzed graph, as a graph of its own (design 3.1, step 8)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.utils._sympy.functions import CleanDiv, FloorDiv, Mod, PythonMod

from fusion.graph.cuts import Analysis, batch_symbols
from fusion.graph.errors import CaptureError
from fusion.graph.kinds import Kind
from fusion.graph.normalize import written

Naming = Callable[[str, str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What one block covers: main nodes, the value it takes and the value it gives (None: the model's output)."""

    nodes: tuple[fx.Node, ...]
    source: fx.Node
    result: fx.Node | None


def spans(analysis: Analysis, cuts: Sequence[fx.Node]) -> list[Span]:
    """Return what the blocks between ``cuts`` cover."""
    position = {node: index for index, node in enumerate(analysis.order)}
    ends = [position[cut] + 1 for cut in cuts]
    values: list[fx.Node | None] = [analysis.captured.inputs[analysis.primary], *cuts, None]
    found = []
    for index, (start, end) in enumerate(zip([0, *ends], [*ends, len(analysis.order)], strict=True)):
        source = values[index]
        assert source is not None
        found.append(Span(nodes=tuple(analysis.order[start:end]), source=source, result=values[index + 1]))
    return found


def required(analysis: Analysis, span: Span) -> set[fx.Node]:
    """Return every node that a block runs or takes: its main nodes and the closures that they need."""
    results = [span.result] if span.result is not None else analysis.captured.graph.output_node().all_input_nodes
    stack = [*span.nodes, *results]
    found: set[fx.Node] = set()
    while stack:
        node = stack.pop()
        if node in found:
            continue
        found.add(node)
        if node is not span.source and not _is_computed_anew(node, analysis):
            stack.extend(analysis.aliases.needs(node))
    return found


def raw_needs(analysis: Analysis, span: Span) -> set[int]:
    """Return the positions of the raw inputs that a block takes beside its feature."""
    nodes = required(analysis, span)
    inputs = analysis.captured.inputs
    symbols = {symbol for node in nodes if analysis.kinds.get(node) is Kind.SHAPE for symbol in _symbols(node)}
    found = {index for index, node in enumerate(inputs) if node in nodes}
    known = _dimensions(span.source) | batch_symbols(analysis.captured)
    for index, node in enumerate(inputs):
        if symbols & _dimensions(node) - known:
            found.add(index)
            known = known | _dimensions(node)
    return found - {index for index, node in enumerate(inputs) if node is span.source}


def extract(analysis: Analysis, span: Span, needs: Sequence[int], naming: Naming, label: str) -> fx.Graph:
    """Return the graph of a block: placeholders are the feature and the raw inputs ``needs``, ``get_attr`` nodes the tensors.

    Args:
        analysis: The whole graph.
        span: What the block covers.
        needs: Positions of the raw inputs beside.
        naming: Gives the name of a tensor by the graph's name for it and the path of the module that uses it.
        label: Name of the block in messages.

    Raises:
        CaptureError: If a size cannot be told from what the block takes.
    """
    return _Extraction(analysis, span, needs, naming, label).run()


class _Extraction:
    """The state of one call of :func:`extract`."""

    def __init__(self, analysis: Analysis, span: Span, needs: Sequence[int], naming: Naming, label: str) -> None:
        self.analysis = analysis
        self.span = span
        self.needs = needs
        self.naming = naming
        self.label = label
        self.graph = fx.Graph()
        self.made: dict[fx.Node, Any] = {}
        self.attributes: dict[str, fx.Node] = {}
        self.sizes: dict[sympy.Basic, tuple[fx.Node, int]] = {}
        self.expressions: dict[sympy.Basic, Any] = {}
        self.place: fx.Node | None = None

    def run(self) -> fx.Graph:
        nodes = required(self.analysis, self.span)
        self._take_inputs(nodes)
        for node in self.analysis.captured.graph.nodes:
            if node in nodes and node not in self.made and node.op != "placeholder":
                self.made[node] = self._emit(node)
        if self.span.result is not None:
            self.graph.output(self.made[self.span.result])
        else:
            (results,) = self.analysis.captured.graph.output_node().args
            self.graph.output(fx.map_arg(results, self.made.__getitem__))
        self._drop_unused()
        return self.graph

    def _take_inputs(self, nodes: set[fx.Node]) -> None:
        inputs = self.analysis.captured.inputs
        given = [(self.span.source, "x"), *((inputs[index], f"raw_{index}") for index in self.needs)]
        for node, name in given:
            self.made[node] = self.graph.placeholder(name)
        self.x = self.made[self.span.source]
        root = self.analysis.aliases.root
        dirty = {root[target] for node in nodes - {self.span.source} for target in written(node)}
        for node, _ in given:
            self._take_sizes(node)
            if root[node] in dirty:
                self.made[node] = self.graph.call_function(torch.ops.aten.clone.default, (self.made[node],))

    def _take_sizes(self, node: fx.Node) -> None:
        value = node.meta["val"]
        if not isinstance(value, Tensor):
            return
        for dimension, size in enumerate(value.shape):
            if isinstance(size, torch.SymInt):
                self.sizes.setdefault(size.node.expr, (self.made[node], dimension))
        if node is self.span.source:
            for symbol in batch_symbols(self.analysis.captured):
                self.sizes.setdefault(symbol, (self.made[node], 0))

    def _emit(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return None  # made where it is used, under the name that its user knows
        if _is_computed_anew(node, self.analysis):
            return self._size(node)
        path = node.meta.get("path", "")
        arguments, named = fx.map_arg((node.args, node.kwargs), lambda source: self._value(source, path))
        arguments, named = self._on_device((arguments, named))
        return self.graph.create_node(node.op, node.target, arguments, named, name=node.name)

    def _value(self, node: fx.Node, path: str) -> Any:
        if node.op != "get_attr":
            return self.made[node]
        name = self.naming(str(node.target), path)
        if name not in self.attributes:
            self.attributes[name] = self.graph.get_attr(name)
        return self.attributes[name]

    def _on_device(self, value: Any) -> Any:
        """Replace the device of the capture by that of the feature, so that a block can be moved."""
        if isinstance(value, torch.device):
            source = self.span.source.meta["val"].device
            if value.type != source.type:
                return value
            if self.place is None:
                self.place = self.graph.call_function(getattr, (self.x, "device"))
            return self.place
        if isinstance(value, tuple):
            return tuple(self._on_device(item) for item in value)
        if isinstance(value, list):
            return [self._on_device(item) for item in value]
        if isinstance(value, dict):
            return {key: self._on_device(item) for key, item in value.items()}
        return value

    def _size(self, node: fx.Node) -> Any:
        value = node.meta["val"]
        if not isinstance(value, torch.SymInt):
            return value
        try:
            return self._expression(value.node.expr)
        except KeyError:
            text = f"size {node.name} = {value.node.expr} cannot be recovered from its input"
            raise CaptureError(f"block {self.label}: {text}") from None

    def _expression(self, expression: sympy.Basic) -> Any:
        if expression not in self.expressions:
            self.expressions[expression] = self._compute(expression)
        return self.expressions[expression]

    def _compute(self, expression: sympy.Basic) -> Any:
        if expression.is_Integer:
            return int(str(expression))
        if expression in self.sizes:
            return self.graph.call_function(torch.ops.aten.sym_size.int, self.sizes[expression])
        parts = [self._expression(part) for part in expression.args] if expression.args else []
        if isinstance(expression, sympy.Add):
            return self._chain(operator.add, parts)
        if isinstance(expression, sympy.Mul):
            return self._chain(operator.mul, parts)
        if isinstance(expression, sympy.Pow) and expression.exp.is_Integer and int(expression.exp) > 0:
            return self._chain(operator.mul, [parts[0]] * int(expression.exp))
        if isinstance(expression, FloorDiv | CleanDiv):
            return self.graph.call_function(operator.floordiv, tuple(parts))
        if isinstance(expression, Mod | PythonMod):
            return self.graph.call_function(operator.mod, tuple(parts))
        raise KeyError(expression)

    def _chain(self, function: Callable[[Any, Any], Any], parts: list[Any]) -> Any:
        result = parts[0]
        for part in parts[1:]:
            both = isinstance(result, int) and isinstance(part, int)
            result = function(result, part) if both else self.graph.call_function(function, (result, part))
        return result

    def _drop_unused(self) -> None:
        for node in reversed(list(self.graph.nodes)):
            is_number = node.target in (torch.ops.aten.sym_size.int, getattr) or node.op == "get_attr"
            if is_number and not node.users:
                self.graph.erase_node(node)


def _is_computed_anew(node: fx.Node, analysis: Analysis) -> bool:
    """Return whether ``node`` is a whole number made of sizes, which a block makes of the sizes of what it takes."""
    return analysis.kinds.get(node) is Kind.SHAPE and not isinstance(node.meta["val"], torch.SymFloat | torch.SymBool)


def _symbols(node: fx.Node) -> set[sympy.Expr]:
    value = node.meta.get("val")
    return set(value.node.expr.free_symbols) if isinstance(value, torch.SymInt) else set()


def _dimensions(node: fx.Node) -> set[sympy.Expr]:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return set()
    return {size.node.expr for size in value.shape if isinstance(size, torch.SymInt)}
