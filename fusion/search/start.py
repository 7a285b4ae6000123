"""How a mutated model starts: every block that gets something new is made to see what it used to see, as far as that goes (R3).

A new adapter starts at the least-squares map from what it is given to what its block used to get. Where the shapes are equal
there is no adapter; then the map goes into the weights that read the block's input, if they can take it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from fusion.graph.block import Block
from fusion.graph.feature import Layout
from fusion.graph.realign import readers, realign, shared_parameters
from fusion.graph.rescale import Rescale, can_start_least_squares, start_least_squares
from fusion.graph.tree import FusedTree
from fusion.search.absgraph import BlockId, Graph
from fusion.search.build import adapter_name, block_name

_CHANNELS = (Layout.CHW, Layout.HWC, Layout.TOK, Layout.VEC)


class Origin:
    """A tree that is mutated, and what its blocks are given, looked at once.

    Args:
        tree: The tree; it must not change.
        graph: Its graph.
        inputs: Raw inputs to fit to, each ``(samples, ...)``; a few hundred are enough.
    """

    def __init__(self, tree: FusedTree, graph: Graph, inputs: Sequence[Tensor]) -> None:
        self.graph = graph
        self.inputs = inputs
        self._tree = tree
        self._given: dict[str, Tensor] = {}

    def given(self, steps: Sequence[str]) -> dict[str, Tensor]:
        """Return what some steps are given."""
        self._given |= inputs_of(self._tree, [step for step in steps if step not in self._given], self.inputs)
        return {step: self._given[step] for step in steps}


def start(tree: FusedTree, graph: Graph, origin: Origin) -> int:
    """Start what is new in a tree; return how many adapters and blocks were fitted.

    Args:
        tree: Of ``graph``, with the weights of ``origin`` where they have the same nodes; changed in place.
        graph: The mutated graph.
        origin: What was mutated.
    """
    known, inputs = dict(origin.graph.edges), origin.inputs
    moved = [block for block in graph.facts().order if block in known and known[block] != graph.edge(block)]
    wanted = origin.given([block_name(block) for block in moved])
    fitted: set[str] = set()
    old = {adapter_name(adapter) for adapter in origin.graph.adapters()}
    for block in moved:
        adapter = graph.edge(block).adapter
        step = block_name(block) if adapter is None else adapter_name(adapter)
        if step not in fitted and step not in old:
            given = inputs_of(tree, [step], inputs)[step]
            if _fit(tree, step, given, wanted[block_name(block)], _generator(block)):
                fitted.add(step)
    return len(fitted)


def inputs_of(tree: FusedTree, steps: Collection[str], inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return what some steps of a tree are given, in eval mode and without gradients; nothing more than that is run."""
    seen: dict[str, Tensor] = {}
    if not steps:
        return seen

    def note(name: str, value: Tensor) -> None:
        seen[name] = value.detach()
        if len(seen) == len(steps):
            raise _EnoughError

    handles = [
        tree.nodes[step].register_forward_pre_hook(lambda module, args, name=step: note(name, args[0])) for step in steps
    ]
    was_training = tree.training
    tree.eval()
    served = tree.tasks_of()
    tasks = [task for task in tree.tasks if any(task in served[step] for step in steps)]
    try:
        with torch.no_grad(), contextlib.suppress(_EnoughError):
            tree.run(inputs, tasks=tasks)
    finally:
        for handle in handles:
            handle.remove()
        tree.train(was_training)
    return seen


class _EnoughError(Exception):
    """Ends a forward pass when all that was asked for has been seen."""


def _fit(tree: FusedTree, step: str, given: Tensor, wanted: Tensor, generator: torch.Generator) -> bool:
    module = tree.nodes[step]
    if isinstance(module, Rescale):
        if not can_start_least_squares(module.source, module.target):
            return False
        start_least_squares(module, [(given, wanted)], ridge=None)
        return True
    if not isinstance(module, Block) or module.input.layout not in _CHANNELS:
        return False
    tied = shared_parameters(tree.nodes.values())
    if readers(module, shared=tied) is None:
        return False
    if not module.input.is_float or not can_start_least_squares(module.input, module.input):
        return False
    map_ = Rescale(module.input, module.input, generator=generator, has_map=True).to(given.device)
    start_least_squares(map_, [(given, wanted)], ridge=None)
    assert map_.weight is not None
    assert map_.bias is not None
    return realign(module, map_.weight, map_.bias, shared=tied)


def _generator(block: BlockId) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * block.task + block.op)
