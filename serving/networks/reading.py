"""From any module that answers tasks to a graph of layers that can be trained, cut to tasks and pruned."""

from __future__ import annotations

import copy
import dataclasses
import keyword
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fusion.graph.borrowing import borrowed
from fusion.graph.capture import at_batch, capture
from fusion.graph.captured import Captured, plain
from fusion.graph.errors import FusionError
from fusion.graph.normalize import Aliases, drop_dead, normalize, writes_state
from fusion.graph.operators import packet
from fusion.graph.rebatch import rebatch
from serving.errors import ServingError
from serving.networks.layers import Layers

_aten = torch.ops.aten
_CHECKED_ROWS = (3, 1)
_TAKEN = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph()))) | frozenset(keyword.kwlist)
_COUNTER = "num_batches_tracked"
_FROZEN = ("_transformer_encoder_layer_fwd", "_native_multi_head_attention")  # kernels without derivative, of evaluation only
_ROUNDING = 1e-4  # of float32, by which such a kernel and the layers that it stands for differ


def read_network(module: nn.Module, examples: tuple[Tensor, ...], *, label: str) -> fx.GraphModule:
    """Read a module as a graph of layers.

    What dropout and batch norm do in training is kept. A module that does more than that otherwise in training (random
    depth, further heads) is read as it is in evaluation, and trains so.

    Args:
        module: Takes tensors by position, the batch in dimension 0, and gives ``{task: (batch, ...)}``. It is not changed.
        examples: Inputs, each ``(batch, ...)``, at least one sample.
        label: Whose it is, for messages.

    Returns:
        A network in evaluation mode that shares no storage with the module, for any batch size, with the module's own names
        of layers and weights. In evaluation it answers as the module does, bit for bit (as with gradients, where torch has a
        kernel of its own without; to rounding, where an archive of the module holds such a kernel). Convolutions, linear
        layers, norms, embeddings and dropouts are modules of ``torch.nn``; one that is used twice stays one; all else are
        functions. A name that ``fx.GraphModule`` has for itself gets a ``_``.

    Raises:
        ServingError: If it cannot be read, or does not give a tensor for each task.
    """
    evaluation = read_graph(module, examples, label=label)
    tasks = list(evaluation.output)
    rounding = _ROUNDING if any(packet(node) in _FROZEN for node in evaluation.graph.nodes) else 0.0
    for captured, is_training in ((_in_training(module, examples, label, tasks), True), (evaluation, False)):
        network = None if captured is None else _network(captured, is_training=is_training)
        if network is not None and _answers_alike(module, network, examples, rounding, is_lent=evaluation.is_lent):
            return network
    raise ServingError(f"{label}: read as a graph, it answers otherwise than the module itself; does it draw at random?")


def read_graph(module: nn.Module, examples: tuple[Tensor, ...], *, label: str, training: bool = False) -> Captured:
    """Return a module's operators in one mode, for any batch; its output is ``{task: position}``.

    Raises:
        ServingError: If it cannot be captured, or does not give a tensor for each task.
    """
    try:
        captured = capture(module, examples, None, training=training, label=label)
        is_static = captured.static_batch is not None
        normalize(captured)
        if is_static:
            captured, _ = rebatch(captured, label)
    except FusionError as error:
        raise ServingError(f"{label}: {error}") from error
    _check_output(captured, label)
    return captured


def _check_output(captured: Captured, label: str) -> None:
    output = captured.output
    is_dict = isinstance(output, dict) and all(isinstance(key, str) for key in output)
    if not is_dict or not all(isinstance(place, int) for place in output.values()):
        got = "a tensor" if isinstance(output, int) else "nothing" if output is None else f"a {type(output).__name__}"
        detail = f" of {', '.join(map(repr, output))}, not all tensors" if isinstance(output, dict) else ""
        raise ServingError(
            f"{label}: expected forward to return a dict, {{task: tensor}}; got {got}{detail}. "
            "Wrap the module in one that gives each output its task's name"
        )
    leaves = _leaves(captured)
    for task, place in output.items():
        leaf = leaves[place]
        shape = leaf.meta["val"].shape if isinstance(leaf, fx.Node) else ()
        if not shape or not isinstance(shape[0], torch.SymInt):
            raise ServingError(f"{label}: expected for task {task!r} an output (batch, ...); got {tuple(shape)} for any batch")


def _leaves(captured: Captured) -> Any:
    """Return the nodes of a graph's flat output."""
    (leaves,) = captured.graph.output_node().args
    return leaves


def _in_training(module: nn.Module, examples: tuple[Tensor, ...], label: str, tasks: list[str]) -> Captured | None:
    """Return the operators of training; None if there are none to be had, or they are of another kind."""
    try:
        captured = read_graph(module, examples, label=label, training=True)
    except ServingError:
        return None  # a module that cannot train, or gives something else then
    return captured if list(captured.output) == tasks else None


def _network(captured: Captured, *, is_training: bool) -> fx.GraphModule | None:
    """Return the network of a graph; None if it does what a network of layers cannot."""
    captured = _renamed(captured)
    graph = captured.graph
    _free_widths(graph)
    layers = Layers(captured.tensors, is_training)
    layers.raise_all(graph)
    _drop_counters(graph, layers, captured.tensors)
    leaves = _leaves(captured)
    graph.output_node().args = ({task: leaves[place] for task, place in captured.output.items()},)
    drop_dead(graph)
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    aliases = Aliases(graph)
    if used & captured.parts.keys() or any(writes_state(node, aliases) for node in graph.nodes):
        return None
    for node in graph.nodes:
        node.meta = {}
    root = {**layers.modules, **{name: captured.tensors[name] for name in used}}
    return copy.deepcopy(fx.GraphModule(root, graph, "Network")).eval()


def _renamed(captured: Captured) -> Captured:
    """Return a graph without names that ``fx.GraphModule`` has for itself (``graph``, ``code``): they end in ``_``."""

    def free(path: str) -> str:
        return ".".join(f"{part}_" if part in _TAKEN else part for part in path.split("."))

    for node in captured.graph.nodes:
        node.meta["path"] = free(str(node.meta.get("path") or ""))
        if node.op == "get_attr":
            node.target = free(str(node.target))
    tensors = {free(name): tensor for name, tensor in captured.tensors.items()}
    parts = {free(name): part for name, part in captured.parts.items()}
    return dataclasses.replace(captured, tensors=tensors, parts=parts)


def _free_widths(graph: fx.Graph) -> None:
    """Let reshapes take what width there is, so that layers before them can become narrower."""
    for node in graph.nodes:
        if packet(node) not in ("reshape", "view", "_unsafe_view") or len(node.args) != 2:
            continue
        source, sizes = node.args
        before, after = source.meta["val"].shape, node.meta["val"].shape
        numbers = [place for place, size in enumerate(sizes) if isinstance(size, int) and size != 1]
        if len(after) == 2 and len(before) > 1 and str(before[0]) == str(after[0]):
            node.target = _aten.flatten.using_ints
            node.args = (source, 1)
        elif len(numbers) == 1:
            node.args = (source, [-1 if place in numbers else size for place, size in enumerate(sizes)])


def _drop_counters(graph: fx.Graph, layers: Layers, tensors: Mapping[str, Tensor]) -> None:
    """Leave the counting of batches to the batch norms, which go on from where they are."""
    for node in list(graph.nodes):
        target = node.args[0] if packet(node) == "add_" else None
        path, _, name = str(target.target).rpartition(".") if isinstance(target, fx.Node) else ("", "", "")
        if name == _COUNTER and path in layers.modules and not node.users:
            graph.erase_node(node)
    for path, module in layers.modules.items():
        counter = tensors.get(f"{path}.{_COUNTER}")
        if counter is not None and _COUNTER in module._buffers:
            module._buffers[_COUNTER] = counter


def _answers_alike(
    module: nn.Module, network: nn.Module, examples: tuple[Tensor, ...], rounding: float, *, is_lent: bool
) -> bool:
    with borrowed(module, training=False, is_lent=is_lent) as reference, torch.no_grad():
        for size in _CHECKED_ROWS:
            inputs = at_batch(examples, size)
            expected, got = plain(reference(*inputs)), network(*inputs)
            if not all(same(expected[task], got[task], rounding) for task in got):
                return False
    return True


def same(one: Tensor, other: Tensor, rounding: float = 0.0) -> bool:
    """Return whether two tensors hold the same numbers, NaN included; ``rounding`` is relative, and absolute below 1."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.allclose(one, other, rtol=rounding, atol=rounding, equal_nan=True)
