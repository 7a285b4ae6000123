"""The blocks of all models: what the graphs of a search are made of.

References:
    GMorph: Accelerating Multi-DNN Inference via Model Fusion, section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from fusion.graph.errors import FusionError
from fusion.graph.feature import Feature, adapter_capacity, adapter_flops


class BlockId(NamedTuple):
    """Block number ``op`` of task number ``task``, both from 0."""

    task: int
    op: int


class AdapterId(NamedTuple):
    """An adapter behind ``source`` (None: the shared input), named after the block whose input it was made for."""

    source: BlockId | None
    target: BlockId


NodeId = BlockId | AdapterId | None
"""A node of the tree; None is the root, the shared input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockInfo:
    """What a search knows of a block.

    Attributes:
        name: Path of the module it covers, for reading.
        op_type: Its heaviest kind, such as ``conv``.
        input: The feature that it takes.
        output: The feature that it makes; None for the last block of a model, whose output is the model's own.
        capacity: Number of parameter elements.
        flops: Per sample.
        needs: Positions of the raw inputs that it takes beside the feature.
        stitched: Whether another model's feature reaches it through an adapter even if the shapes are equal: its own weights
            cannot take in the change of coordinates, as those of a residual block cannot.
    """

    name: str
    op_type: str
    input: Feature
    output: Feature | None
    capacity: int
    flops: int
    needs: tuple[int, ...] = ()
    stitched: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The blocks of all models: what graphs are made of.

    Attributes:
        tasks: Name of each task.
        blocks: The blocks of each task, from the input to the output.

    Raises:
        FusionError: If a task has no block, or a block does not make what the next one takes.
    """

    tasks: tuple[str, ...]
    blocks: tuple[tuple[BlockInfo, ...], ...]

    def __post_init__(self) -> None:
        problems = [*_problems(self)]
        if problems:
            raise FusionError(f"the blocks of the models: {'; '.join(problems)}")

    @property
    def root(self) -> Feature:
        """The feature that the first block of every task takes: the shared input."""
        return self.blocks[0][0].input

    def info(self, block: BlockId) -> BlockInfo:
        """Return what is known of a block."""
        return self.blocks[block.task][block.op]

    def last(self, task: int) -> BlockId:
        """Return the block that makes the output of a task."""
        return BlockId(task, len(self.blocks[task]) - 1)

    def boundary(self, source: BlockId | None) -> Feature:
        """Return the feature behind a block, or the shared input for None.

        Raises:
            FusionError: For a last block: what it makes is the task's answer, which no block takes.
        """
        if source is None:
            return self.root
        output = self.info(source).output
        if output is None:
            raise FusionError(f"expected a block with another behind it, got {source}, the last of {self.tasks[source.task]!r}")
        return output

    def fits(self, source: BlockId | None, target: Feature) -> bool:
        """Whether the feature behind ``source`` can be taken as ``target`` without an adapter."""
        if source is None:
            # first blocks may call one tensor by different layouts, and take it all the same
            return any(blocks[0].input == target for blocks in self.blocks)
        return self.boundary(source) == target

    def is_stitched(self, source: BlockId | None, block: BlockId) -> bool:
        """Whether what is behind ``source`` reaches ``block`` through an adapter although the shapes may be equal."""
        return source is not None and source.task != block.task and self.info(block).stitched

    def to_json(self) -> dict[str, Any]:
        """Return the space as plain values."""
        return {"tasks": list(self.tasks), "blocks": [[_info_to_json(info) for info in blocks] for blocks in self.blocks]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Space:
        """Return the space that ``to_json`` wrote."""
        blocks = tuple(tuple(_info_from_json(info) for info in blocks) for blocks in data["blocks"])
        return cls(tasks=tuple(data["tasks"]), blocks=blocks)


def capacity_of(space: Space, node: BlockId | AdapterId) -> int:
    """Return the number of parameters of a node."""
    if isinstance(node, BlockId):
        return space.info(node).capacity
    source, target = space.boundary(node.source), space.info(node.target).input
    return adapter_capacity(source, target, has_map=source == target or None)


def flops_of(space: Space, node: BlockId | AdapterId) -> int:
    """Return the floating-point operations of a node per sample."""
    if isinstance(node, BlockId):
        return space.info(node).flops
    source, target = space.boundary(node.source), space.info(node.target).input
    return adapter_flops(source, target, has_map=source == target or None)


def _problems(space: Space) -> list[str]:
    """Return everything that is wrong with the blocks."""
    if not space.tasks or len(space.tasks) != len(space.blocks):
        return [f"expected blocks for each of {len(space.tasks)} tasks, got them for {len(space.blocks)}"]
    found = []
    for task, blocks in zip(space.tasks, space.blocks, strict=True):
        if not blocks:
            found.append(f"task {task!r} has no block")
            continue
        if blocks[0].input.shape != space.root.shape:
            found.append(f"task {task!r} takes an input of shape {blocks[0].input.shape}, the first one {space.root.shape}")
        found += [
            f"task {task!r}: block {number} makes {block.output}, block {number + 1} takes {after.input}"
            for number, (block, after) in enumerate(pairwise(blocks))
            if block.output != after.input
        ]
    return found


def _info_to_json(info: BlockInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "op_type": info.op_type,
        "input": info.input.to_json(),
        "output": None if info.output is None else info.output.to_json(),
        "capacity": info.capacity,
        "flops": info.flops,
        "needs": list(info.needs),
        "stitched": info.stitched,
    }


def _info_from_json(data: Mapping[str, Any]) -> BlockInfo:
    return BlockInfo(
        name=data["name"],
        op_type=data["op_type"],
        input=Feature.from_json(data["input"]),
        output=None if data["output"] is None else Feature.from_json(data["output"]),
        capacity=data["capacity"],
        flops=data["flops"],
        needs=tuple(data["needs"]),
        stitched=data.get("stitched", False),
    )
