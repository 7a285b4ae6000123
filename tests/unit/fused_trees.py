"""Small trees of linear maps, and what each of their tasks answers on its own."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusion.graph.feature import Feature, Layout
from fusion.graph.tree import FusedTree, Step


@dataclass(frozen=True)
class Takes:
    """A signature: positional inputs, or inputs by name, in that order."""

    names: tuple[str, ...] | None = None
    primary: int = 0
    features: tuple[Feature, ...] = (Feature((5,), Layout.VEC),)

    def flatten(self, inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        if isinstance(inputs, Mapping):
            return tuple(inputs[name] for name in self.names)
        return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


class Counting(nn.Module):
    """A linear map that counts how often it is run."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(seed))
        nn.init.normal_(self.linear.bias, generator=torch.Generator().manual_seed(seed + 1000))
        self.num_runs = 0

    def forward(self, x: Tensor, *side: Tensor) -> Tensor:
        self.num_runs += 1
        return torch.tanh(self.linear(x)) + sum(side)


def step(name: str, source: str | None, task: str | None = None, needs: tuple[int, ...] = ()) -> Step:
    return Step(name=name, source=source, needs=needs, task=task)


def tree_of(*steps: Step, signature: Any = None, width: int = 5, **modules: nn.Module) -> FusedTree:
    tasks = [s.task for s in steps if s.task is not None]
    made = {s.name: Counting(width, seed) for seed, s in enumerate(steps)}
    return FusedTree(steps, made | modules, tasks=tasks, signature=signature or Takes())


def forked() -> FusedTree:
    """Three tasks: ``a`` and ``b`` share two blocks, ``c`` branches off after the first."""
    return tree_of(
        step("b0_0", None),
        step("b0_1", "b0_0"),
        step("b0_2", "b0_1", "a"),
        step("b1_2", "b0_1", "b"),
        step("a0_0_2_1", "b0_0"),
        step("b2_1", "a0_0_2_1", "c"),
    )


def naively(tree: FusedTree, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """Run each task's path on its own, sharing nothing."""
    steps = {s.name: s for s in tree.steps}
    outputs = {}
    for last in tree.steps:
        if last.task is None:
            continue
        path = [last]
        while path[0].source is not None:
            path.insert(0, steps[path[0].source])
        value: Any = inputs[tree.signature.primary]
        for s in path:
            value = tree.nodes[s.name](value, *(inputs[i] for i in s.needs))
        outputs[last.task] = value
    return {task: outputs[task] for task in tree.tasks}


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert list(first) == list(second)
    for task in first:
        assert torch.equal(first[task], second[task])


class PlainBlock(nn.Module):
    """A block as ``parse`` makes it, put together by hand."""

    def __init__(self, index: int, body: nn.Module, takes: Feature, makes: Feature | None, needs: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.index, self.name, self.op_type = index, f"layer{index}", "linear" if isinstance(body, nn.Linear) else "conv"
        self.input, self.output, self.needs = takes, makes, needs
        self.add_module(self.name, body)

    @property
    def capacity(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, x: Tensor, *side: Tensor) -> Any:
        return torch.tanh(self.get_submodule(self.name)(x)) + sum(extra.mean() for extra in side)


class PlainSequence(nn.Module):
    """A model in blocks."""

    def __init__(self, name: str, blocks: list[PlainBlock], signature: Takes) -> None:
        super().__init__()
        self.name, self.signature, self.notes = name, signature, ()
        self.blocks = nn.ModuleList(blocks)

    def state_dict(self, *, keep_vars: bool = False, **_: Any) -> dict[str, Any]:
        return {name: value for block in self.blocks for name, value in block.state_dict(keep_vars=keep_vars).items()}

    def run(self, inputs: tuple[Tensor, ...]) -> Any:
        x: Any = inputs[self.signature.primary]
        for block in self.blocks:
            x = block(x, *(inputs[position] for position in block.needs))
        return x


IMAGE = Feature((2, 6, 6), Layout.CHW)


def small_cnn(name: str, seed: int, num_blocks: int = 5) -> PlainSequence:
    """Maps of a few sizes, then vectors, then an answer; the third block also takes the picture."""
    rng = random.Random(seed)
    blocks: list[PlainBlock] = []
    takes = IMAGE
    for index in range(num_blocks):
        is_last = index == num_blocks - 1
        if index < num_blocks // 2:
            channels, size = rng.choice([3, 4]), takes.shape[1] - rng.choice([0, 2]) if takes.shape[1] > 2 else 2
            body: nn.Module = nn.Conv2d(takes.shape[0], channels, takes.shape[1] - size + 1)
            makes = Feature((channels, size, size), Layout.CHW)
        else:
            width = rng.choice([4, 6])
            linear = nn.Linear(math.prod(takes.shape), width)
            body = linear if takes.layout is Layout.VEC else nn.Sequential(nn.Flatten(), linear)
            makes = Feature((width,), Layout.VEC)
        blocks.append(PlainBlock(index, body, takes, None if is_last else makes, needs=(0,) if index == 2 else ()))
        takes = makes
    sequence = PlainSequence(name, blocks, Takes(features=(IMAGE,)))
    generator = torch.Generator().manual_seed(seed)
    for parameter in sequence.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return sequence
