"""Find the values through which everything flows (design 3.1, step 6)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sympy
import torch
from torch import Tensor, fx

from fusion.graph.captured import Captured
from fusion.graph.kinds import Kind, classify, is_pinned
from fusion.graph.normalize import Aliases, written


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """A normalized graph and what was found out about it.

    Attributes:
        captured: The graph.
        aliases: Which of its nodes share memory.
        kinds: The class of every node but the output.
        order: Main nodes in an order in which they can run.
        last_use: Position in ``order`` of the last main node that takes a main node's value; the number of main nodes for
            what the model returns.
        primary: Position of the raw input at which the path begins.
        cuts: Main nodes through which everything flows and that can be a feature, in order.
        folded: Names of values that everything flows through but that hold the batch in another dimension.
    """

    captured: Captured
    aliases: Aliases
    kinds: dict[fx.Node, Kind]
    order: list[fx.Node]
    last_use: dict[fx.Node, int]
    primary: int
    cuts: list[fx.Node]
    folded: list[str]


def analyze(captured: Captured, primary: int) -> Analysis:
    """Classify the nodes of a normalized graph and find its cuts.

    Args:
        captured: The graph.
        primary: Position of the raw input at which the path begins.
    """
    aliases = Aliases(captured.graph)
    kinds, starts = classify(captured, aliases, captured.inputs[primary])
    order = _order(captured, aliases, kinds, starts)
    position = {node: index for index, node in enumerate(order)}
    edges = [(position[need], position[node]) for node in order for need in aliases.needs(node) if need in position]
    edges += [(position[node], len(order)) for node in captured.graph.output_node().all_input_nodes if node in position]
    last_use: dict[fx.Node, int] = {}
    for source, target in edges:
        last_use[order[source]] = max(target, last_use.get(order[source], 0))
    first = min((position[start] for start in starts), default=len(order))
    edges += [(-1, position[start]) for start in starts]
    through = [order[index] for index in dominating(len(order), edges) if index >= first]
    cuts, folded = _features(through, captured)
    return Analysis(
        captured=captured,
        aliases=aliases,
        kinds=kinds,
        order=order,
        last_use=last_use,
        primary=primary,
        cuts=cuts,
        folded=folded,
    )


def dominating(num_nodes: int, edges: Iterable[tuple[int, int]]) -> list[int]:
    """Return the nodes that lie on every path from the source to the sink.

    A node at position v does iff no edge (u, w) has u < v < w; one sweep over a difference array finds them all.

    Args:
        num_nodes: Nodes are numbered from 0 in a topological order. Each must lie on some path from source to sink.
        edges: Pairs (from, to) with from < to; the source is -1, the sink ``num_nodes``.

    Example:
        >>> dominating(4, [(-1, 0), (0, 1), (0, 2), (1, 2), (2, 3), (3, 4)])
        [0, 2, 3]
    """
    steps = [0] * (num_nodes + 2)
    for source, target in edges:
        if target - source > 1:
            steps[source + 1] += 1
            steps[target] -= 1
    found = []
    crossing = 0
    for index in range(num_nodes):
        crossing += steps[index]
        if crossing == 0:
            found.append(index)
    return found


def batch_symbols(captured: Captured) -> set[sympy.Expr]:
    """Return the symbols that stand for the batch: dimension 0 of the raw inputs."""
    values = [node.meta["val"] for node in captured.inputs]
    sizes = [value.shape[0] for value in values if isinstance(value, Tensor) and value.ndim]
    return {size.node.expr for size in sizes if isinstance(size, torch.SymInt)}


def _order(captured: Captured, aliases: Aliases, kinds: dict[fx.Node, Kind], starts: list[fx.Node]) -> list[fx.Node]:
    """Return the main nodes in graph order, but what the path does not come through (a second tower) as late as possible."""
    nodes = [node for node in captured.graph.nodes if kinds.get(node) is Kind.MAIN]
    on_path = set(starts)
    for node in nodes:
        if any(need in on_path for need in aliases.needs(node)):
            on_path.add(node)
    beside = [node for node in nodes if node not in on_path]
    if not beside or any(is_pinned(node, aliases) or written(node) for node in beside):
        return nodes  # random draws and writes keep their order
    order: dict[fx.Node, None] = {}
    for node in nodes:
        stack = [node] if node in on_path else []
        while stack:
            waiting = [need for need in aliases.needs(stack[-1]) if kinds[need] is Kind.MAIN and need not in order]
            if waiting:
                stack.extend(waiting)
            else:
                order[stack.pop()] = None
    return list(order)


def _features(through: list[fx.Node], captured: Captured) -> tuple[list[fx.Node], list[str]]:
    """Return which of the nodes can be features, and the names of those that hold the batch elsewhere."""
    symbols = batch_symbols(captured)
    cuts: list[fx.Node] = []
    folded: list[str] = []
    for node in through:
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
            continue
        first = value.shape[0]
        if (
            isinstance(first, torch.SymInt)
            and first.node.expr in symbols
            and not any(_has_batch(size, symbols) for size in value.shape[1:])
        ):
            cuts.append(node)
        else:
            folded.append(node.name)
    return cuts, folded


def _has_batch(size: int | torch.SymInt, symbols: set[sympy.Expr]) -> bool:
    return isinstance(size, torch.SymInt) and bool(size.node.expr.free_symbols & symbols)
