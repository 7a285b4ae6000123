"""How a model's graph for training and its graph for evaluation belong together (design 3.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from difflib import SequenceMatcher

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from fusion.graph.captured import Captured, copied
from fusion.graph.operators import RECURRENT, packet

_aten = torch.ops.aten


def align(train: Captured, evaluation: Captured) -> dict[fx.Node, fx.Node]:
    """Return for nodes of the evaluation graph the ones of the training graph that do the same.

    The graphs are compared as sequences, by operator, module and shape of each node; what only one of them has (random
    depth, counters, extra heads) is left out.
    """
    left, right = _operators(evaluation), _operators(train)
    matcher = SequenceMatcher(a=[_token(node) for node in left], b=[_token(node) for node in right], autojunk=False)
    pairs: dict[fx.Node, fx.Node] = {}
    for start, other, size in matcher.get_matching_blocks():
        pairs.update(zip(left[start : start + size], right[other : other + size], strict=True))
    return pairs


def outputs_alike(train: Captured, evaluation: Captured) -> bool:
    """Return whether both graphs give the same structure of tensors of the same shapes and dtypes."""
    if train.output != evaluation.output:
        return False
    return _descriptions(train) == _descriptions(evaluation)


def switched_on(evaluation: Captured, train: Captured | None) -> Captured:
    """Return the evaluation graph as it would train: normalisation by the batch, no dropout and no random depth.

    Switches are found by their names in the operators' schemas.

    Args:
        evaluation: Is not changed.
        train: The training graph, whose switches are taken where it has the same operator; None if there is none: then
            every normalisation that has statistics trains.
    """
    graph, made = copied(evaluation.graph)
    pairs = None if train is None else align(train, evaluation)
    for node, own in made.items():
        twin = None if pairs is None else pairs.get(node)
        for switch in _switches(node):
            is_on = bool(get_argument(twin, switch)) if twin is not None else pairs is None and _has_statistics(node)
            set_argument(own, switch, value=is_on)
        if packet(node) in RECURRENT and _has_argument(node, "train"):
            set_argument(own, "train", value=True)  # cuDNN gives gradients in no other mode
            set_argument(own, "dropout", value=0.0)
    tensors = dict(evaluation.tensors)
    if train is not None and pairs is not None:
        _count_batches(graph, train, {pairs[node]: made[node] for node in made if node in pairs}, tensors)
    return dataclasses.replace(evaluation, graph=graph, tensors=tensors)


def get_argument(node: fx.Node, name: str) -> object:
    """Return the value of the argument ``name`` by the operator's schema."""
    assert isinstance(node.target, OpOverload)
    for index, argument in enumerate(node.target._schema.arguments):
        if argument.name == name:
            return node.args[index] if index < len(node.args) else node.kwargs.get(name, argument.default_value)
    raise KeyError(name)


def set_argument(node: fx.Node, name: str, *, value: bool | float) -> None:
    """Set the value of the argument ``name`` by the operator's schema."""
    assert isinstance(node.target, OpOverload)
    for index, argument in enumerate(node.target._schema.arguments):
        if argument.name == name and index < len(node.args):
            node.update_arg(index, value)
        elif argument.name == name:
            node.update_kwarg(name, value)


def _descriptions(captured: Captured) -> list[tuple[object, ...]]:
    (leaves,) = captured.graph.output_node().args
    assert isinstance(leaves, tuple | list), "the output of a captured graph is flat"
    return [_description(leaf) for leaf in leaves]


def _operators(captured: Captured) -> list[fx.Node]:
    return [node for node in captured.graph.nodes if node.op == "call_function"]


def _token(node: fx.Node) -> tuple[object, ...]:
    return node.target, node.meta.get("path", ""), *_description(node)


def _description(node: object) -> tuple[object, ...]:
    """Return dtype and shape of a node's value, without the names of sizes, which differ between captures."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else node
    if not isinstance(value, Tensor):
        return (type(value),)
    return (value.dtype, *(size if isinstance(size, int) else None for size in value.shape))


def _switches(node: fx.Node) -> list[str]:
    """Return the names of the arguments that say whether a normalisation trains."""
    return [name for name in ("training", "use_input_stats") if _has_argument(node, name)]


def _has_argument(node: fx.Node, name: str) -> bool:
    return isinstance(node.target, OpOverload) and any(argument.name == name for argument in node.target._schema.arguments)


def _has_statistics(node: fx.Node) -> bool:
    return get_argument(node, "running_mean") is not None


def _count_batches(graph: fx.Graph, train: Captured, copies: Mapping[fx.Node, fx.Node], tensors: dict[str, Tensor]) -> None:
    """Let counters of batches count as in the training graph: each beside the copy of the normalisation of its module."""
    norms = {node.meta.get("path"): copied for node, copied in copies.items() if _switches(node)}
    for node in _operators(train):
        if packet(node) != "add_" or not isinstance(node.args[1], int) or node.meta.get("path") not in norms:
            continue
        counter = node.args[0]
        if isinstance(counter, fx.Node) and counter.op == "get_attr":
            with graph.inserting_before(norms[node.meta["path"]]):
                attribute = graph.get_attr(str(counter.target))
                attribute.meta = dict(counter.meta)
                graph.create_node("call_function", node.target, (attribute, node.args[1])).meta = dict(node.meta)
            tensors[str(counter.target)] = train.tensors[str(counter.target)]
