"""Networks on disk: a graph of operators as JSON and weights as safetensors. Nothing in the files is ever run.

``graph.json`` names operators of a fixed list, see :mod:`serving.networks.operators`; the code of the network that it was made
from is not needed to read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from fusion.graph.borrowing import borrowed
from fusion.graph.capture import at_batch
from fusion.graph.captured import Captured, plain
from fusion.graph.normalize import drop_dead
from fusion.graph.operators import packet
from fusion.graph.toggles import get_argument, set_argument
from serving.errors import ServingError
from serving.networks.compiling import Recipe, compiled
from serving.networks.encoding import encode
from serving.networks.operators import DROPPING, name_of
from serving.networks.reading import read_graph, same
from serving.networks.recipes import FORMAT, read_recipe

GRAPH_NAME = "graph.json"
WEIGHTS_NAME = "model.safetensors"
_CHECKED_ROWS = (3, 1)
_IDENTITIES = frozenset({"dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "detach", "lift_fresh_copy"})


class Program(nn.Module):
    """A network that was read from disk: always in evaluation mode, its weights are buffers under their names."""

    def __init__(self, recipe: Recipe, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.tasks = tuple(recipe.outputs)
        self.num_inputs = recipe.num_inputs
        self._homes = [(_home(self, name)._buffers, name.rpartition(".")[2]) for name in recipe.tensors]
        for (home, key), name in zip(self._homes, recipe.tensors, strict=True):
            home[key] = tensors[name]
        self._function = compiled(recipe)
        for module in self.modules():
            module.training = False

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Return ``{task: (batch, ...)}`` for inputs ``(batch, ...)`` in the order of the family."""
        if len(inputs) != self.num_inputs:
            raise ServingError(f"expected {self.num_inputs} inputs, got {len(inputs)}")
        return dict(zip(self.tasks, self._function(*inputs, *(home[key] for home, key in self._homes)), strict=True))

    def train(self, mode: bool = True) -> Program:
        """Stay in evaluation mode; raises ServingError if another is asked for."""
        if mode:
            raise ServingError("a stored network answers in evaluation mode only: train the network that it was made from")
        return self


def _home(root: nn.Module, name: str) -> nn.Module:
    """Return the module under ``root`` that a name with dots lies in; what is missing on the way is made."""
    for part in name.split(".")[:-1]:
        if part not in root._modules:
            root._modules[part] = nn.Module()
        root = root.get_submodule(part)
    return root


def write_program(module: nn.Module, examples: tuple[Tensor, ...], folder: Path) -> None:
    """Write a module as it is in evaluation mode, and read it back.

    Args:
        module: As for :func:`serving.networks.reading.read_network`. It is not changed.
        examples: Inputs, each ``(batch, ...)``; none of their values is in the files.
        folder: Made if need be. Gets ``graph.json`` and ``model.safetensors``.

    Raises:
        ServingError: If it cannot be captured, uses an operator that is not on the list, or, read back, does not answer bit
            for bit as the module does where no gradients are wanted.
    """
    label = f"a network of {type(module).__name__}"
    captured = read_graph(module, examples, label=label)
    try:
        content, tensors = _described(captured)
    except ValueError as error:
        raise ServingError(f"{label} cannot be stored: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_NAME, {"format": "pt"})
    (folder / GRAPH_NAME).write_text(json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n")
    _check_answers(read_program(folder), module, examples, label, is_lent=captured.is_lent)


def read_program(folder: Path) -> Program:
    """Read what :func:`write_program` wrote.

    Nothing in the files is run, and only operators on the list are called; that the files are those that were written is for
    the caller to check, by hash.

    Returns:
        A module on the CPU in evaluation mode. It takes the inputs by position and gives ``{task: tensor}``.

    Raises:
        ServingError: If a file is missing, too large or something else than was written.
    """
    try:
        recipe = read_recipe(folder / GRAPH_NAME)
        # copies: in the file's memory they lie at odd addresses, where some products are slower and round otherwise
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS_NAME).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise ServingError(f"{folder}: no stored network can be read: {error}") from error
    lacking = sorted(set(recipe.tensors) - tensors.keys())
    if lacking:
        raise ServingError(f"{folder / WEIGHTS_NAME}: expected the tensor {lacking[0]!r}, which {GRAPH_NAME} names")
    try:
        return Program(recipe, tensors)
    except (AttributeError, TypeError, RecursionError) as error:
        raise ServingError(f"{folder / GRAPH_NAME}: it names tensors as no network does: {error}") from error


def _check_answers(program: Program, module: nn.Module, examples: tuple[Tensor, ...], label: str, *, is_lent: bool) -> None:
    with borrowed(module, training=False, is_lent=is_lent) as reference, _frozen(reference), torch.no_grad():
        for size in _CHECKED_ROWS:
            inputs = at_batch(examples, size)
            expected, got = plain(reference(*inputs)), program(*inputs)
            different = [task for task, output in got.items() if not same(expected[task], output)]
            if different:
                raise ServingError(
                    f"{label}, read back, answers {', '.join(different)} otherwise for {size} samples; does it draw at random, "
                    "or hold weights in another memory format than torch.contiguous_format?"
                )


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Let no weight want a gradient: by that alone, torch multiplies some matrices in another order."""
    wanting = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in wanting:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)


def _described(captured: Captured) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a captured graph as JSON, and the tensors that it names."""
    graph = captured.graph
    for node in list(graph.nodes):
        if packet(node) in _IDENTITIES:  # without gradients they give what they take; a call that drops is refused below
            if packet(node).endswith("dropout") and get_argument(node, "train"):
                raise ValueError("it drops at random in evaluation mode")
            node.replace_all_uses_with(node.all_input_nodes[0], propagate_meta=False)
            graph.erase_node(node)
        elif packet(node) in DROPPING and packet(node) != "scaled_dot_product_attention":
            set_argument(node, "train", value=False)
            set_argument(node, "dropout", value=0.0)
    drop_dead(graph)
    writer = _Writer(captured)
    nodes = [writer.call(node) for node in graph.nodes if node.op == "call_function"]
    (leaves,) = graph.output_node().args
    outputs = {task: writer.refer(leaves[place]) for task, place in captured.output.items()}  # pyrefly: ignore
    content = {"format": FORMAT, "inputs": len(captured.inputs), "nodes": nodes, "outputs": outputs}
    return content, writer.tensors


@dataclass(slots=True, init=False)
class _Writer:
    """Turns nodes into JSON."""

    captured: Captured
    positions: dict[fx.Node, dict[str, Any]]
    tensors: dict[str, Tensor]

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.positions = {node: {"input": index} for index, node in enumerate(captured.inputs)}
        self.tensors = {}

    def call(self, node: fx.Node) -> dict[str, Any]:
        args = [encode(value, self.refer) for value in node.args]
        kwargs = {name: encode(value, self.refer) for name, value in node.kwargs.items()}
        self.positions[node] = {"node": len(self.positions) - len(self.captured.inputs)}
        return {"op": name_of(node.target), "args": args} | ({"kwargs": kwargs} if kwargs else {})

    def refer(self, node: fx.Node) -> dict[str, Any]:
        if node.op != "get_attr":
            return self.positions[node]
        name = str(node.target)
        if name not in self.captured.tensors:
            raise ValueError("it hands functions to an operator")
        if name not in self.tensors:
            self.tensors[name] = self.captured.tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
