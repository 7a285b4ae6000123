"""Small models in blocks, and fused trees of them, made by hand: no capture, so that tests of training are quick."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusion.graph.tree import FusedTree, Step
from tests.unit.fused_trees import Takes

WIDTH = 6


class Chain(nn.Module):
    """A model in blocks that counts its passes."""

    def __init__(self, name: str, *blocks: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.blocks = nn.ModuleList(blocks)
        self.signature = Takes()
        self.num_runs = 0

    def run(self, inputs: Sequence[Tensor]) -> Any:
        self.num_runs += 1
        value = inputs[0]
        for block in self.blocks:
            value = block(value)
        return value

    def features(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        self.num_runs += 1
        found = [inputs[0]]
        for block in list(self.blocks)[:-1]:
            found.append(block(found[-1]))
        return found


def drawn(module: nn.Module, seed: int) -> nn.Module:
    """Give a module weights of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return module


def hidden(seed: int, *, dropout: float = 0.0) -> nn.Module:
    return drawn(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh(), nn.Dropout(dropout)), seed)


def head(classes: int, seed: int) -> nn.Module:
    return drawn(nn.Linear(WIDTH, classes), seed)


def chains(*, dropout: float = 0.0) -> tuple[Chain, Chain]:
    """Two models of three blocks: "age" with 3 classes and "mood" with 4."""
    first = Chain("age", hidden(1, dropout=dropout), hidden(2, dropout=dropout), head(3, 3))
    second = Chain("mood", hidden(4, dropout=dropout), hidden(5, dropout=dropout), head(4, 6))
    return first.eval(), second.eval()


def samples(count: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def shared(models: Sequence[Chain], *, adapter_seed: int | None = None) -> FusedTree:
    """The second model takes the first one's first feature, through an adapter if there is a seed for it; copies."""
    first, second = (copy.deepcopy(model).blocks for model in models)
    guest = "b0_0" if adapter_seed is None else "a0_0_1_1"
    steps = [
        Step(name="b0_0", source=None, needs=(), task=None),
        Step(name="b0_1", source="b0_0", needs=(), task=None),
        Step(name="b0_2", source="b0_1", needs=(), task="age"),
        Step(name="a0_0_1_1", source="b0_0", needs=(), task=None),
        Step(name="b1_1", source=guest, needs=(), task=None),
        Step(name="b1_2", source="b1_1", needs=(), task="mood"),
    ]
    adapter = drawn(nn.Linear(WIDTH, WIDTH), adapter_seed or 0)
    modules = {"b0_0": first[0], "b0_1": first[1], "b0_2": first[2], "a0_0_1_1": adapter, "b1_1": second[1], "b1_2": second[2]}
    return FusedTree(steps, modules, tasks=("age", "mood"), signature=Takes())


def apart(models: Sequence[Chain]) -> FusedTree:
    """The models side by side; copies."""
    steps, modules = [], {}
    for task, model in enumerate(copy.deepcopy(list(models))):
        last = len(model.blocks) - 1
        for op, block in enumerate(model.blocks):
            name, source = f"b{task}_{op}", f"b{task}_{op - 1}" if op else None
            steps.append(Step(name=name, source=source, needs=(), task=model.name if op == last else None))
            modules[name] = block
    return FusedTree(steps, modules, tasks=[model.name for model in models], signature=Takes())
