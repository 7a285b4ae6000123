"""What each node of a captured graph is for the path of features (design 3.1, step 5)."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from fusion.graph.captured import Captured
from fusion.graph.errors import CaptureError
from fusion.graph.normalize import Aliases, writes_state
from fusion.graph.operators import EMBEDDING, HEAVY, START, packet


class Kind(StrEnum):
    """What a node is for the path of features."""

    CONST = "const"  # only from parameters, buffers, constants
    SHAPE = "shape"  # symbolic ints
    SIDE = "side"  # from raw inputs, but not on the path
    MAIN = "main"


def classify(captured: Captured, aliases: Aliases, primary: fx.Node) -> tuple[dict[fx.Node, Kind], list[fx.Node]]:
    """Return the class of every node but the output, and the nodes at which the path of features starts.

    It starts where values made of the primary input first meet a parameter. What is made of the input without one (a scaled
    picture, a mask of what is padding) every block can make again, so that the path need not keep it alive. Where no parameter
    is met, it starts at the nodes that take the input.
    """
    kinds, starts = _classify(captured, aliases, primary, is_at_once=False)
    if not starts and _is_float(primary):
        return _classify(captured, aliases, primary, is_at_once=True)
    return kinds, starts


def find_primary(captured: Captured, label: str, names: tuple[str, ...] | None) -> int:
    """Return the position of the one input that heavy operators with parameters take by itself.

    Args:
        captured: The normalized graph.
        label: Name of the model in messages.
        names: Names of the inputs in messages; None if they have positions only.

    Raises:
        CaptureError: If there are several and they are not all ids.
    """
    inputs = captured.inputs
    reach = _raw_inputs(captured)
    found: set[int] = set()
    for node in captured.graph.nodes:
        if packet(node) in HEAVY:
            own = frozenset().union(*(reach[source] for source in node.all_input_nodes))
            if len(own) == 1 and any(not reach[source] for source in node.all_input_nodes):
                found |= own
    floats = [index for index, node in enumerate(inputs) if _is_float(node)]
    candidates = sorted(found) or floats or list(range(len(inputs)))
    if not candidates:
        raise CaptureError(f"model '{label}' takes no tensor; there is nothing that tasks could share")
    if len(candidates) > 1 and any(index in floats for index in candidates):
        choices = ", ".join(str(index) if names is None else names[index] for index in candidates)
        raise CaptureError(
            f"ambiguous primary input of '{label}'; pass primary=<name>, or its position (the path of features could begin "
            f"at any of: {choices})"
        )
    return candidates[0]


def is_pinned(node: fx.Node, aliases: Aliases) -> bool:
    """Return whether ``node`` must run exactly once, so that no closure may repeat it.

    It draws at random, writes a tensor of the model, or reads one that is written.
    """
    is_random = isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags
    is_random = is_random and not _is_off(node)
    roots = [aliases.root[source] for source in node.all_input_nodes]
    reads_state = any(root.op == "get_attr" and aliases.writes[root] for root in roots)
    return is_random or reads_state or writes_state(node, aliases)


def _is_off(node: fx.Node) -> bool:
    """Return whether ``node`` is a dropout of evaluation, which gives its input."""
    return packet(node).endswith("dropout") and len(node.args) == 3 and node.args[2] is False


def _classify(
    captured: Captured, aliases: Aliases, primary: fx.Node, *, is_at_once: bool
) -> tuple[dict[fx.Node, Kind], list[fx.Node]]:
    kinds: dict[fx.Node, Kind] = {}
    starts: list[fx.Node] = []
    learned: set[fx.Node] = set()
    reach = _raw_inputs(captured)
    for node in captured.graph.nodes:
        if node.op == "output":
            continue
        kinds[node] = kind = _kind(node, aliases, kinds)
        if node.op == "placeholder" or kind is Kind.SHAPE:
            continue
        if _is_learned(node, captured, aliases, learned):
            learned.add(node)
        is_ours = bool(reach[node] & reach[primary])
        if is_ours and _starts(node, primary, kinds, learned, is_at_once=is_at_once):
            starts.append(node)
            kinds[node] = Kind.MAIN
        elif kind is not Kind.MAIN and _is_costly(node, kind, learned):
            kinds[node] = Kind.MAIN
    return kinds, starts


def _kind(node: fx.Node, aliases: Aliases, kinds: dict[fx.Node, Kind]) -> Kind:
    """Return the class of a node by those of what it needs."""
    if node.op == "placeholder":
        return Kind.SIDE
    if _is_size(node):
        return Kind.SHAPE
    found = {kinds[need] for need in aliases.needs(node)}
    if Kind.MAIN in found or is_pinned(node, aliases):
        return Kind.MAIN
    return Kind.SIDE if Kind.SIDE in found else Kind.CONST


def _is_learned(node: fx.Node, captured: Captured, aliases: Aliases, learned: set[fx.Node]) -> bool:
    if node.op == "get_attr":
        return isinstance(captured.tensors.get(str(node.target)), nn.Parameter)
    return any(need in learned for need in aliases.needs(node))


def _is_costly(node: fx.Node, kind: Kind, learned: set[fx.Node]) -> bool:
    """Return whether a node beside the path is too heavy to be run in more than one block.

    Looking up a table of positions or of relative distances is not, nor is a product of constants (rotary angles).
    """
    if packet(node) not in HEAVY or (kind is Kind.CONST and packet(node) in EMBEDDING):
        return False
    return any(source in learned for source in node.all_input_nodes)


def _starts(node: fx.Node, primary: fx.Node, kinds: dict[fx.Node, Kind], learned: set[fx.Node], *, is_at_once: bool) -> bool:
    """Return whether the path of features starts at ``node``, which is made of the primary input."""
    sources = node.all_input_nodes
    joins = any(kinds[source] is Kind.CONST and source in learned for source in sources)
    if not _is_float(primary):
        takes = any(kinds[source] is Kind.SIDE for source in sources)
        return kinds[node] is Kind.SIDE and packet(node) in START and takes and joins
    value = node.meta.get("val")
    if isinstance(value, Tensor) and not value.is_floating_point():
        return False  # whole numbers made of a float input are masks
    if is_at_once:
        return primary in sources
    if kinds[node] is Kind.MAIN:  # it draws at random or keeps a state
        return not any(kinds[source] is Kind.MAIN for source in sources)
    return joins or packet(node) in HEAVY


def _is_size(node: fx.Node) -> bool:
    """Return whether ``node`` is a number made of sizes; one that is read out of a tensor is none."""
    value = node.meta.get("val")
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        return not any(str(symbol).startswith(("u", "zuf")) for symbol in value.node.expr.free_symbols)
    return isinstance(value, int | float | bool) and node.op == "call_function"


def _raw_inputs(captured: Captured) -> dict[fx.Node, frozenset[int]]:
    """Return for each node the raw inputs that its values (not only its size) depend on."""
    aliases = Aliases(captured.graph)
    numbers = {node: index for index, node in enumerate(captured.inputs)}
    reach: dict[fx.Node, frozenset[int]] = {}
    for node in captured.graph.nodes:
        if node in numbers:
            reach[node] = frozenset({numbers[node]})
        elif _is_size(node):
            reach[node] = frozenset()
        else:
            reach[node] = frozenset().union(*(reach[need] for need in aliases.needs(node)))
    return reach


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()
