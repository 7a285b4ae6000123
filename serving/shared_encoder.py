"""The part of a stored network that all its tasks share, with new heads on it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, fx, nn

from serving.errors import ServingError
from serving.networks.compiling import Recipe
from serving.networks.encoding import Reference, references
from serving.networks.programs import GRAPH_NAME, Program, read_program
from serving.networks.recipes import read_recipe

HIDDEN = 64
_FEATURES = "features"


def with_deeper_heads(folder: Path, examples: tuple[Tensor, ...], *, hidden: int = HIDDEN) -> Callable[[int], fx.GraphModule]:
    """Return what makes networks with the encoder of a stored one and new heads of so many ReLU layers, untrained.

    Args:
        folder: Of a network whose tasks all branch off from one value.
        examples: What it takes, ``(batch, ...)`` each; networks are made on their device.
        hidden: Units of each layer of a head but the last.

    Raises:
        ServingError: If there is none in the folder, or its tasks share several values, or none.
    """
    device = examples[0].device
    network = read_program(folder).to(device)
    encoder = Program(_shared(read_recipe(folder / GRAPH_NAME)), dict(network.named_buffers()))
    with torch.no_grad():
        outputs = {task: math.prod(output.shape[1:]) for task, output in network(*examples).items()}
        num_features = math.prod(encoder(*examples)[_FEATURES].shape[1:])

    def make(depth: int) -> fx.GraphModule:
        heads = nn.ModuleList(_head(num_features, size, depth, hidden) for size in outputs.values())
        return _joined(encoder, heads, tuple(outputs)).to(device).eval()

    return make


def _joined(encoder: Program, heads: nn.ModuleList, tasks: tuple[str, ...]) -> fx.GraphModule:
    graph = fx.Graph()
    inputs = tuple(graph.placeholder(f"input_{place}") for place in range(encoder.num_inputs))
    features = graph.call_function(operator.getitem, (graph.call_module("encoder", inputs), _FEATURES))
    flat = graph.call_function(torch.flatten, (features, 1))
    answers = {}
    for place, task in enumerate(tasks):
        answers[task] = flat
        for layer in range(len(cast("nn.Sequential", heads[place]))):
            answers[task] = graph.call_module(f"heads.{place}.{layer}", (answers[task],))
    graph.output(answers)
    return fx.GraphModule(nn.ModuleDict({"encoder": encoder, "heads": heads}), graph)


def _head(features: int, outputs: int, depth: int, hidden: int) -> nn.Sequential:
    widths = [features, *[hidden] * (depth - 1)]
    layers = [layer for before, after in pairwise(widths) for layer in (nn.Linear(before, after), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


def _shared(recipe: Recipe) -> Recipe:
    """Return what a recipe does up to where its tasks part."""
    serves: list[set[str]] = [set() for _ in recipe.calls]
    for task, value in recipe.outputs.items():
        for place in _nodes([value]):
            serves[place].add(task)
    used = [list(references([*call.args, *call.kwargs.values()])) for call in recipe.calls]
    for place in reversed(range(len(recipe.calls))):
        for earlier in _nodes(used[place]):
            serves[earlier] |= serves[place]
    by_all = {place for place, tasks in enumerate(serves) if len(tasks) == len(recipe.outputs)}
    taken = [*recipe.outputs.values(), *(value for place, values in enumerate(used) if place not in by_all for value in values)]
    borders = {value for value in taken if value.kind == "input" or value.target in by_all}
    borders = {value for value in borders if value.kind != "tensor"}
    if len(borders) != 1 or next(iter(borders)).kind != "node":
        raise ServingError(
            f"expected tasks that branch off from one value that is computed for all of them; they share {len(borders)}"
        )
    (border,) = borders
    calls = recipe.calls[: int(border.target) + 1]
    return replace(recipe, calls=calls, outputs={_FEATURES: border})


def _nodes(values: list[Reference]) -> list[int]:
    return [int(value.target) for value in values if value.kind == "node"]
