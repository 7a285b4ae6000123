"""A model as one flat graph of operators over its own tensors (design 3.1, step 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from fusion.graph.errors import CaptureError

_LIFTED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """A model as one flat graph.

    Attributes:
        graph: Placeholders are the raw inputs in order, ``get_attr`` nodes name tensors (or sub-graphs of operators that
            take functions), and the output is a flat tuple. The meta of a node holds its value and the path of its module.
        tensors: The model's own tensors, by the names that the graph uses.
        parts: Sub-graphs, by name.
        output: The model's output as plain Python, with positions in the flat tuple in place of its tensors.
        static_batch: The batch that the graph is bound to; None where it takes any.
        is_lent: Whether forward reaches tensors past the module, so that only the model itself can run it.
    """

    graph: fx.Graph
    tensors: Mapping[str, Tensor]
    parts: Mapping[str, nn.Module]
    output: Any
    static_batch: int | None = None
    is_lent: bool = False

    @property
    def inputs(self) -> list[fx.Node]:
        """Placeholders of the raw inputs."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]


def from_program(program: ExportedProgram, tensors: Mapping[str, Tensor] | None = None, *, prefix: str = "") -> Captured:
    """Return a program with its lifted tensors as attributes again.

    Args:
        program: Is not changed.
        tensors: The tensors to put in, by the names that the user knows; None for the program's own.
        prefix: What the program's names have before those.

    Raises:
        CaptureError: If it takes or gives something other than tensors.
    """
    if tensors is None:
        tensors = {**dict(program.named_parameters()), **dict(program.named_buffers())}
    graph, made = copied(program.graph, prefix)
    held: dict[str, Tensor] = {}
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for original, node in made.items():
        if original.op != "placeholder" or specs[original.name].kind is InputKind.USER_INPUT:
            continue
        spec = specs[original.name]
        if spec.target is None or spec.kind not in _LIFTED:
            raise CaptureError(f"an input of kind {spec.kind} ({node.name}) cannot be part of a block")
        name = spec.target.removeprefix(prefix)
        held[name] = tensors[name] if name in tensors else program.constants[spec.target]
        _become_attribute(graph, node, name)
    parts = {
        str(node.target): _own_part(program.graph_module.get_submodule(str(node.target)), prefix)
        for node in graph.nodes
        if node.op == "get_attr" and str(node.target) not in held
    }
    return Captured(graph=graph, tensors=held, parts=parts, output=_output_of(program), static_batch=_static_batch(program))


def copied(graph: fx.Graph, prefix: str | None = None) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """Return a copy of a graph, and which node became which.

    Args:
        graph: The graph.
        prefix: What paths have before those that the user knows, if the graph comes from ``torch.export``; None for a copy
            of a copy.
    """
    result = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    result.output(result.graph_copy(graph, made))
    for node, copied_node in made.items():
        copied_node.meta = dict(node.meta) if prefix is None else _own_meta(node, prefix)
    return result, made


def kept_apart(captured: Captured, other: Captured) -> Captured:
    """Return ``captured`` with new names for constants that have the same name in ``other`` but other values."""
    tensors = dict(captured.tensors)
    for name in [name for name in captured.tensors if name in other.tensors]:
        mine, theirs = captured.tensors[name], other.tensors[name]
        if mine is not theirs and not (mine.shape == theirs.shape and torch.equal(mine, theirs)):
            tensors[f"{name}_apart"] = tensors.pop(name)
            for node in captured.graph.nodes:
                if node.op == "get_attr" and node.target == name:
                    node.target = f"{name}_apart"
    return dataclasses.replace(captured, tensors=tensors)


def plain(value: Any, is_leaf: Callable[[Any], bool] = lambda value: isinstance(value, Tensor)) -> Any:
    """Return an output with only tensors, tuples, lists and dicts; of a mapping or record, what holds no tensor is left out."""
    if is_leaf(value):
        return value
    if isinstance(value, Mapping):
        found = {key: plain(item, is_leaf) for key, item in value.items()}
        return {key: item for key, item in found.items() if item is not None} or None
    if isinstance(value, list | tuple):
        items = [plain(item, is_leaf) for item in value]
        if all(item is None for item in items):
            return None
        return items if isinstance(value, list) else tuple(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, is_leaf)
    return None


def _output_of(program: ExportedProgram) -> Any:
    """Return the output as plain Python with positions in place of tensors."""
    spec = program.call_spec.out_spec
    (leaves,) = program.graph.output_node().args
    assert spec is not None, "an exported program knows its output"
    assert isinstance(leaves, list | tuple), "the output of an exported graph is flat"
    positions = [index if isinstance(leaf, fx.Node) else None for index, leaf in enumerate(leaves)]
    return plain(pytree.tree_unflatten(positions, spec), lambda value: isinstance(value, int))


def _static_batch(program: ExportedProgram) -> int | None:
    """Return the batch that a program is bound to: dimension 0 of its inputs, if it is a number in all of them."""
    names = set(program.graph_signature.user_inputs)
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    sizes = [node.meta["val"].shape[0] for node in nodes if isinstance(node.meta["val"], Tensor) and node.meta["val"].ndim]
    numbers = [size if isinstance(size, int) else size.node.maybe_as_int() for size in sizes]
    return None if None in numbers else next(iter(numbers), None)


def _own_part(part: nn.Module, prefix: str) -> fx.GraphModule:
    """Return a copy of the sub-graph of an operator that takes functions."""
    assert isinstance(part, fx.GraphModule)
    inner = {str(node.target) for node in part.graph.nodes if node.op == "get_attr"}
    children = {name: _own_part(part.get_submodule(name), prefix) for name in inner}
    return fx.GraphModule(children, copied(part.graph, prefix)[0])


def _own_meta(node: fx.Node, prefix: str) -> dict[str, Any]:
    """Return the value of a node and the path of the module that it comes from."""
    stack = node.meta.get("nn_module_stack", {})
    path = list(stack.values())[-1][0] if stack else ""
    path = "" if "metadata_hook" in path else path
    return {"val": node.meta.get("val"), "path": path.removeprefix(prefix.rstrip(".")).removeprefix(".")}


def _become_attribute(graph: fx.Graph, node: fx.Node, name: str) -> None:
    with graph.inserting_before(node):
        attribute = graph.create_node("get_attr", name, name=node.name)
    attribute.meta = dict(node.meta)
    node.replace_all_uses_with(attribute)
    graph.erase_node(node)
