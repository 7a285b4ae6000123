"""T7: random mutation passes over many tasks; every answer is compared with that of the task's own path, run block by block."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.fusion_records import Passes
from fusion.graph.block import BlockSequence
from fusion.graph.parse import parse
from fusion.graph.tree import FusedTree
from fusion.search.absgraph import BlockId, Graph, original
from fusion.search.build import adapter_name, block_name, build, space_of
from fusion.search.flops import block_flops
from fusion.search.mutation import Sharing, mutation_pass, pairs

COUNTS = (4, 6, 8)
MAX_MUTATIONS = 8
_SHAPE = (3, 8, 8)


class Small(nn.Module):
    """Convolutions with BatchNorm, a fork in their widths and depths, a linear head."""

    def __init__(self, depth: int, width: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = _SHAPE[0]
        for place in range(depth):
            out = width * (1 + place // 2)
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            if place == 1:
                layers.append(nn.MaxPool2d(2))
            channels = out
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(channels, 12), nn.ReLU(), nn.Linear(12, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, 3, 8, 8)`` to ``(B, classes)``."""
        return self.head(self.features(images).mean((2, 3)))


def measure_passes(seed: int, *, num_passes: int, counts: Sequence[int] = COUNTS) -> tuple[Passes, ...]:
    """Mutate at random and compare, for each number of tasks.

    Args:
        seed: Of weights, inputs and mutations.
        num_passes: For each number of tasks.
        counts: Numbers of tasks.
    """
    torch.manual_seed(seed)
    images = torch.randn(3, *_SHAPE)
    models = [Small(2 + number % 4, 4 + 2 * (number % 3), 2 + number).eval() for number in range(max(counts))]
    sequences = [parse(model, images[:2], name=f"task{number}") for number, model in enumerate(models)]
    return tuple(_passes(sequences[:count], images, random.Random(f"{seed} {count}"), num_passes) for count in counts)


def _passes(sequences: Sequence[BlockSequence], images: Tensor, rng: random.Random, num_passes: int) -> Passes:
    first = original(space_of(sequences, [block_flops(one, (images,)) for one in sequences], stitches=True))
    equal = adapters = shared = 0
    for number in range(num_passes):
        sharing = rng.choice(list(Sharing))
        legal = pairs(first, sharing=sharing)
        graph = mutation_pass(first, rng.sample(legal, rng.randint(1, MAX_MUTATIONS)), sharing=sharing) or first
        equal += _is_equal(build(graph, sequences, seed=number).eval(), graph, images)
        adapters += len(graph.adapters())
        shared += sum(len(tasks) > 1 for node, tasks in graph.tasks_of().items() if isinstance(node, BlockId))
    return Passes(num_tasks=len(sequences), num_passes=num_passes, equal=equal, adapters=adapters, shared=shared)


@torch.no_grad()
def _is_equal(tree: FusedTree, graph: Graph, images: Tensor) -> bool:
    together = tree(images)
    for number, task in enumerate(graph.space.tasks):
        expected = _own_path(tree, graph, graph.space.last(number), images)
        alone = tree(images, tasks=[task])
        if list(alone) != [task] or not torch.equal(together[task], expected) or not torch.equal(alone[task], expected):
            return False
    return len(together) == len(graph.space.tasks)


def _own_path(tree: FusedTree, graph: Graph, block: BlockId, images: Tensor) -> Tensor:
    """Run what stands before a block, and the block, by the graph alone; nothing is shared with another path."""
    edge = graph.edge(block)
    value = images if edge.source is None else _own_path(tree, graph, edge.source, images)
    if edge.adapter is not None:
        value = tree.nodes[adapter_name(edge.adapter)](value)
    return tree.nodes[block_name(block)](value.clone())
