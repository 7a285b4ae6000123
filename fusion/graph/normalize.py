"""Bring a captured graph into a form that can be cut: no asserts, no needless writes, no dead code (design 3.1, 3-4)."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from fusion.graph.captured import Captured
from fusion.graph.operators import packet

_aten = torch.ops.aten
_ASSERTS = frozenset({"_assert_scalar", "_assert_async", "_assert_tensor_metadata", "sym_constrain_range"})
_ASSERTS_FOR_SIZE = frozenset({"sym_constrain_range_for_size", "_functional_assert_async"})
# written in place still: they draw at random, or have no twin that autograd knows
_KEPT_IN_PLACE = frozenset(
    {
        "copy_",
        "zero_",
        "fill_",
        "set_",
        "resize_",
        "bernoulli_",
        "uniform_",
        "normal_",
        "random_",
        "exponential_",
        "requires_grad_",
    }
)
# these keep the dtype of what they write into, whatever they are given
_KEEP_DTYPE = frozenset({"masked_fill", "index_put", "scatter", "masked_scatter", "scatter_add", "index_fill", "index_add"})
_MAY_ALIAS = frozenset(
    {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}
)  # in eval they return the input


def normalize(captured: Captured) -> None:
    """Bring the graph of ``captured`` into a form that can be cut; its values stay what they are."""
    graph = captured.graph
    _inline_grad_modes(captured)
    for node in list(graph.nodes):
        if packet(node) in _ASSERTS or packet(node) in _ASSERTS_FOR_SIZE:
            graph.erase_node(node)
    make_functional(graph)
    for node in graph.nodes:
        if node.target is _aten.view.default:
            node.target = _aten.reshape.default  # a feature of another task may lie in memory in another order
    drop_dead(graph)


class Aliases:
    """Which nodes may share memory, and which writes a node therefore has to come after."""

    def __init__(self, graph: fx.Graph) -> None:
        self.root: dict[fx.Node, fx.Node] = {}
        self.writes: dict[fx.Node, list[fx.Node]] = defaultdict(list)  # by root, in graph order
        self.effects: dict[fx.Node, list[fx.Node]] = {}  # node -> writes that its inputs have seen
        for node in graph.nodes:
            self.root[node] = _root(node, self.root)
            seen = {write for source in node.all_input_nodes for write in self.writes[self.root[source]]}
            self.effects[node] = sorted(seen - set(node.all_input_nodes))
            for target in written(node):
                self.writes[self.root[target]].append(node)

    def needs(self, node: fx.Node) -> list[fx.Node]:
        """Return what must have run before ``node``: its inputs and the writes to them."""
        return [*node.all_input_nodes, *self.effects[node]]


def written(node: fx.Node) -> list[fx.Node]:
    """Return the nodes whose memory ``node`` writes."""
    if not isinstance(node.target, OpOverload):
        return []
    found: list[fx.Node] = []
    for argument, value in _arguments(node):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.extend(item for item in _flat(value) if isinstance(item, fx.Node))
    return found


def make_functional(graph: fx.Graph) -> None:
    """Replace ``op_`` by ``op`` wherever nothing but the written tensor itself is used later."""
    position = {node: index for index, node in enumerate(graph.nodes)}
    root: dict[fx.Node, fx.Node] = {}
    group: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in list(graph.nodes):
        root[node] = _root(node, root)
        if _can_be_functional(node):
            target = node.args[0]
            assert isinstance(target, fx.Node)
            others = [member for member in group[root[target]] if member is not target]
            if root[target].op != "get_attr" and not any(_used_after(member, position[node], position) for member in others):
                node.target = _functional(node)
                target.replace_all_uses_with(
                    node, lambda user, after=position[node]: position[user] > after, propagate_meta=False
                )
                root[node] = node
        group[root[node]].append(node)


def drop_dead(graph: fx.Graph) -> None:
    """Erase what neither reaches the output nor writes into a tensor of the model."""
    aliases = Aliases(graph)
    alive: set[fx.Node] = set()
    stack = [node for node in graph.nodes if node.op in ("output", "placeholder") or writes_state(node, aliases)]
    while stack:
        node = stack.pop()
        if node not in alive:
            alive.add(node)
            stack.extend(aliases.needs(node))
    for node in reversed(list(graph.nodes)):
        if node not in alive:
            graph.erase_node(node)


def writes_state(node: fx.Node, aliases: Aliases) -> bool:
    """Return whether ``node`` writes into a parameter or buffer."""
    return any(aliases.root[target].op == "get_attr" for target in written(node))


def _inline_grad_modes(captured: Captured) -> None:
    """Put the operators under ``torch.no_grad()`` in line; what they take is detached, so that no gradient is made."""
    graph = captured.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or "wrap_with_set_grad_enabled" not in str(node.target):
            continue
        is_enabled, part, *values = node.args
        assert isinstance(part, fx.Node)
        inner = captured.parts[str(part.target)]
        assert isinstance(inner, fx.GraphModule)
        if any(child.op == "get_attr" for child in inner.graph.nodes):
            continue  # sub-graphs in sub-graphs stay as they are
        with graph.inserting_before(node):
            _inline(graph, node, inner.graph, values if is_enabled else [_detached(captured, value) for value in values])
        graph.erase_node(node)
        if not part.users:
            graph.erase_node(part)


def _inline(graph: fx.Graph, node: fx.Node, inner: fx.Graph, values: list[Any]) -> None:
    made: dict[fx.Node, Any] = dict(zip((child for child in inner.nodes if child.op == "placeholder"), values, strict=True))
    for child in inner.nodes:
        if child.op not in ("placeholder", "output"):
            arguments, named = fx.map_arg((child.args, child.kwargs), made.__getitem__)
            made[child] = graph.create_node(child.op, child.target, arguments, named, name=child.name)
            made[child].meta = dict(child.meta)
    (results,) = inner.output_node().args
    assert isinstance(results, tuple | list), "the output of a sub-graph is flat"
    outputs = [made[result] if isinstance(result, fx.Node) else result for result in results]
    for user in list(node.users):
        assert user.target is operator.getitem
        output = outputs[int(str(user.args[1]))]
        assert isinstance(output, fx.Node), "the results of a sub-graph are nodes"
        user.replace_all_uses_with(output, propagate_meta=False)
        graph.erase_node(user)


def _detached(captured: Captured, value: Any) -> Any:
    if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), Tensor):
        return value
    if value.op == "get_attr" and not captured.tensors[str(value.target)].requires_grad:
        return value  # buffers are written as they are
    result = captured.graph.call_function(_aten.detach.default, (value,))
    result.meta = dict(value.meta)
    return result


def _root(node: fx.Node, root: dict[fx.Node, fx.Node]) -> fx.Node:
    """Return the node whose memory ``node`` shows; itself if it has its own."""
    if node.target is operator.getitem:
        return root[node.all_input_nodes[0]]
    if not isinstance(node.target, OpOverload):
        return node
    if packet(node).rstrip("_") in _MAY_ALIAS:
        return root[node.all_input_nodes[0]]
    shared = {name for result in node.target._schema.returns if result.alias_info for name in result.alias_info.before_set}
    for argument, value in _arguments(node):
        if argument.alias_info is not None and shared & set(argument.alias_info.before_set):
            for item in _flat(value):
                if isinstance(item, fx.Node):
                    return root[item]
    return node


def _can_be_functional(node: fx.Node) -> bool:
    if not isinstance(node.target, OpOverload) or len(written(node)) != 1 or written(node)[0] is not node.args[0]:
        return False
    if packet(node) in _KEPT_IN_PLACE or _functional(node) is None:
        return False
    values = [source.meta.get("val") for source in node.all_input_nodes]
    dtypes = {value.dtype for value in values if isinstance(value, Tensor)}
    return len(dtypes) == 1 or packet(node)[:-1] in _KEEP_DTYPE


def _functional(node: fx.Node) -> OpOverload | None:
    """Return the operator that gives what ``node`` writes."""
    assert isinstance(node.target, OpOverload)
    name = packet(node)
    if not name.endswith("_") or name.endswith("__"):
        return None
    family = getattr(_aten, name[:-1], None)
    found = getattr(family, node.target._overloadname, None) if node.target.namespace == "aten" else None
    if found is None:
        return None
    same = [argument.name for argument in found._schema.arguments] == [a.name for a in node.target._schema.arguments]
    return found if same else None


def _used_after(node: fx.Node, index: int, position: dict[fx.Node, int]) -> bool:
    return any(position[user] > index for user in node.users)


def _arguments(node: fx.Node) -> Iterable[tuple[torch.Argument, object]]:
    """Yield the operator's arguments by its schema with the values that the node gives."""
    assert isinstance(node.target, OpOverload)
    for index, argument in enumerate(node.target._schema.arguments):
        if index < len(node.args):
            yield argument, node.args[index]
        elif argument.name in node.kwargs:
            yield argument, node.kwargs[argument.name]


def _flat(value: object) -> Iterable[object]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value
