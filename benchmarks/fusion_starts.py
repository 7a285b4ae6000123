"""T4: what a model with a single adapter loses before any training, by how the adapter starts (R3 of the design)."""

from __future__ import annotations

import random

import torch

from benchmarks.fusion_records import Start
from benchmarks.fusion_stage import Stage
from fusion.graph.tree import FusedTree
from fusion.search.absgraph import Graph
from fusion.search.build import build
from fusion.search.data import Part
from fusion.search.mutation import Pair, Sharing, mutate, pairs
from fusion.search.recalibrate import recalibrate
from fusion.search.scores import evaluate
from fusion.search.start import Origin, start
from fusion.search.teachers import TeacherCache

RANDOM, FITTED = "random", "least-squares"
RENEWED = " + statistics"
NUM_SAMPLES, NUM_VALIDATION = 384, 1024
_BATCHES = 4


def measure_starts(stage: Stage, seed: int, count: int) -> tuple[Start, ...]:
    """Share the input of a block with one of another model, through one adapter, and look at what that costs.

    Each merge is looked at with the adapter's random start and with the least-squares one, both as they are and with the
    statistics of the BatchNorms behind it renewed on four batches (``+ statistics``), as a search does.

    Args:
        stage: Models and samples.
        seed: Of the draw of pairs and of random starts.
        count: Merges.
    """
    if not count:
        return ()
    graphs = _merges(stage.original, random.Random(f"starts {seed}"), count)
    inputs = stage.tasks.train.inputs
    index = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))[:NUM_SAMPLES]
    origin = Origin(build(stage.original, stage.sequences, seed=seed).eval(), stage.original, (inputs[index],))
    batches = inputs[: 64 * _BATCHES].split(64)
    validation = stage.data.validation
    part = validation.select(torch.arange(min(NUM_VALIDATION, len(validation))))
    teachers = TeacherCache(stage.sequences)
    found = []
    for pair, graph in graphs:
        drops: dict[str, float] = {}
        for name in (RANDOM, FITTED):
            tree = build(graph, stage.sequences, seed=seed).eval()
            if name == FITTED:
                start(tree, graph, origin)
            drops[name] = _drop(stage, tree, part, teachers)
            recalibrate(tree, [(batch,) for batch in batches])
            drops[name + RENEWED] = _drop(stage, tree, part, teachers)
        found.append(Start(seed=seed, host=tuple(pair.host), guest=tuple(pair.guest), drops=drops))
    return tuple(found)


def _merges(first: Graph, rng: random.Random, count: int) -> list[tuple[Pair, Graph]]:
    """Draw pairs of blocks of two models that need one adapter, behind some block."""
    found = []
    legal = [pair for pair in pairs(first, sharing=Sharing.PARTIAL) if pair.host.task != pair.guest.task]
    for pair in rng.sample(legal, len(legal)):
        graph = mutate(first, pair)
        adapters = graph.adapters()
        if len(adapters) == 1 and adapters[0].source is not None:
            found.append((pair, graph))
        if len(found) == count:
            break
    return found


def _drop(stage: Stage, tree: FusedTree, part: Part, teachers: TeacherCache) -> float:
    return evaluate(tree, part, teachers, stage.search_tasks, label_free=not stage.tasks.has_labels).drop
