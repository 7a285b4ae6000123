"""From models to the space that is searched, from a graph of it to a module with weights, and back.

References:
    GMorph: Accelerating Multi-DNN Inference via Model Fusion, section 4.4.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from fusion.graph.errors import FusionError
from fusion.graph.realign import needs_stitch, shared_parameters
from fusion.graph.rescale import Rescale
from fusion.graph.tree import FusedTree, Step
from fusion.search.absgraph import AdapterId, BlockId, BlockInfo, Edge, Graph, Space

if TYPE_CHECKING:
    from fusion.graph.block import Block, BlockSequence, Signature


def space_of(sequences: Sequence[BlockSequence], flops: Sequence[Sequence[int]], *, stitches: bool = False) -> Space:
    """Return what a search needs to know of the models.

    Args:
        sequences: The models in blocks, one for each task; their names are the tasks'.
        flops: Of each block of each model, per sample.
        stitches: Whether another model's feature of equal shape gets an adapter where the block cannot do without.

    Raises:
        FusionError: If two tasks have one name, or the models take other inputs.
    """
    names = [sequence.name for sequence in sequences]
    if len(set(names)) != len(names):
        raise FusionError(f"expected a name of its own for each task, got {', '.join(names)}")
    first = sequences[0].signature
    for sequence in sequences[1:]:
        if _inputs_of(sequence.signature) != _inputs_of(first):
            raise FusionError(
                f"tasks must take the same input signature: {names[0]!r} {_inputs_of(first)}, "
                f"{sequence.name!r} {_inputs_of(sequence.signature)}"
            )
    tied = shared_parameters(block for sequence in sequences for block in _blocks(sequence))
    blocks = tuple(
        tuple(
            BlockInfo(
                name=block.name,
                op_type=block.op_type,
                input=block.input,
                output=block.output,
                capacity=capacity,
                flops=count,
                needs=block.needs,
                stitched=stitches and needs_stitch(block, shared=tied),
            )
            for block, capacity, count in zip(_blocks(sequence), _capacities(sequence), counts, strict=True)
        )
        for sequence, counts in zip(sequences, flops, strict=True)
    )
    return Space(tasks=tuple(names), blocks=blocks)


def build(
    graph: Graph, sequences: Sequence[BlockSequence], *, seed: int, weights: Mapping[str, Tensor] | None = None
) -> FusedTree:
    """Make the module of a graph.

    Args:
        graph: Which block takes its input where.
        sequences: The models in blocks, in the order of the tasks; they are copied, and what is tied within one of them is
            tied in its copy.
        seed: Of the start of the adapters. An adapter starts alike in whatever tree it stands.
        weights: State dict of an earlier tree. Blocks and adapters that are here too go on from there, the others begin
            with the weights of ``sequences`` and from ``seed``.

    Returns:
        A tree that shares no storage with ``sequences`` or ``weights``, in the mode of the first of ``sequences``.

    Raises:
        FusionError: If an entry of ``weights`` has another shape than its namesake here.
    """
    memos: list[dict[int, Any]] = [{} for _ in sequences]
    steps: list[Step] = []
    modules: dict[str, nn.Module] = {}
    for adapter in graph.adapters():
        steps.append(Step(name=adapter_name(adapter), source=_block_name(adapter.source), needs=(), task=None))
        beside = next(sequences[adapter.target.task].parameters(), torch.empty(0))
        modules[adapter_name(adapter)] = _new_adapter(adapter, graph.space, seed).to(beside.device)
    for block in graph.blocks():
        template = _blocks(sequences[block.task])[block.op]
        steps.append(
            Step(
                name=block_name(block),
                source=_source_name(graph.edge(block)),
                needs=template.needs,
                task=graph.space.tasks[block.task] if block == graph.space.last(block.task) else None,
            )
        )
        modules[block_name(block)] = copy.deepcopy(template, memos[block.task])
    aliases = _aliases(graph, sequences)
    tree = FusedTree(steps, modules, tasks=graph.space.tasks, signature=sequences[0].signature, aliases=aliases)
    tree.train(sequences[0].training)
    inherit(tree, weights or {})
    return tree


def inherit(tree: FusedTree, weights: Mapping[str, Tensor]) -> None:
    """Copy every entry of ``weights`` whose name ``tree`` has into it.

    Raises:
        FusionError: If shapes differ; nothing has been copied then.
    """
    own = tree.state_dict(keep_vars=True)
    common = [name for name in own if name in weights]
    for name in common:
        if own[name].shape != weights[name].shape:
            raise FusionError(
                f"{name}: expected shape {tuple(own[name].shape)}, the weights to inherit have "
                f"{tuple(weights[name].shape)}; they come from a tree of other models"
            )
    with torch.no_grad():
        for name in common:
            own[name].copy_(weights[name])


def graph_of(tree: FusedTree, space: Space) -> Graph:
    """Read the graph of a tree that ``build`` made in ``space``."""
    edges: list[tuple[BlockId, Edge]] = []
    for step in tree.steps:
        if not step.name.startswith("b"):
            continue
        if step.source is not None and step.source.startswith("a"):
            adapter = _parse_adapter(step.source)
            edges.append((_parse_block(step.name), Edge(adapter.source, adapter)))
        else:
            source = None if step.source is None else _parse_block(step.source)
            edges.append((_parse_block(step.name), Edge(source, None)))
    return Graph(space, tuple(sorted(edges, key=lambda entry: entry[0])))


def block_name(block: BlockId) -> str:
    """Return the name of the step of a block.

    Example:
        >>> block_name(BlockId(0, 3))
        'b0_3'
    """
    return f"b{block.task}_{block.op}"


def adapter_name(adapter: AdapterId) -> str:
    """Return the name of the step of an adapter.

    Example:
        >>> adapter_name(AdapterId(BlockId(0, 2), BlockId(1, 3))), adapter_name(AdapterId(None, BlockId(1, 3)))
        ('a0_2_1_3', 'ar_1_3')
    """
    source = "r" if adapter.source is None else f"{adapter.source.task}_{adapter.source.op}"
    return f"a{source}_{adapter.target.task}_{adapter.target.op}"


def _blocks(sequence: BlockSequence) -> list[Block]:
    return cast("list[Block]", [*sequence.blocks])  # a ModuleList does not tell the checker what it holds


def _capacities(sequence: BlockSequence) -> list[int]:
    """Return the number of parameter elements of each block; one that is tied counts once, for the last block that has it.

    The last, because blocks go from the front: who takes another model's features still has the blocks behind.
    """
    counted: set[int] = set()
    capacities = []
    for block in reversed(_blocks(sequence)):
        new = {id(parameter): parameter.numel() for parameter in block.parameters() if id(parameter) not in counted}
        counted |= new.keys()
        capacities.append(sum(new.values()))
    return capacities[::-1]


def _aliases(graph: Graph, sequences: Sequence[BlockSequence]) -> dict[str, list[str]]:
    """Return the names that tied weights have beside the one that their block knows."""
    names: list[dict[int, list[str]]] = [{} for _ in sequences]
    for known, sequence in zip(names, sequences, strict=True):
        for name, tensor in sequence.state_dict(keep_vars=True).items():
            known.setdefault(id(tensor), []).append(name)
    found = {}
    for block in graph.blocks():
        module = _blocks(sequences[block.task])[block.op]
        for name, tensor in module.state_dict(keep_vars=True).items():
            others = [other for other in names[block.task].get(id(tensor), ()) if other != name]
            if others:
                found[f"nodes.{block_name(block)}.{name}"] = others
    return found


def _inputs_of(signature: Signature) -> tuple[object, ...]:
    """Return what models must agree on; they may well see different layouts in one tensor."""
    tensors = [(feature.shape, feature.dtype) for feature in signature.features]
    return signature.names, tuple(tensors), signature.primary


def _block_name(block: BlockId | None) -> str | None:
    return None if block is None else block_name(block)


def _source_name(edge: Edge) -> str | None:
    return _block_name(edge.source) if edge.adapter is None else adapter_name(edge.adapter)


def _parse_block(name: str) -> BlockId:
    task, op = name[1:].split("_")
    return BlockId(int(task), int(op))


def _parse_adapter(name: str) -> AdapterId:
    *source, task, op = name[1:].split("_")
    return AdapterId(None if source == ["r"] else BlockId(*map(int, source)), BlockId(int(task), int(op)))


def _new_adapter(adapter: AdapterId, space: Space, seed: int) -> Rescale:
    digest = hashlib.sha256(f"{seed} {adapter_name(adapter)}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
    source, target = space.boundary(adapter.source), space.info(adapter.target).input
    return Rescale(source, target, generator=generator, has_map=source == target or None)
