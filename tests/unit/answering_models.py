"""Trained-looking models of one architecture, with inputs, for tests of stacks that answer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo import ZOO, Case, Inputs, call, case, images

NUM_MEMBERS = 3


class Depthwise(nn.Module):
    """Separable convolutions with other activations, as of a small mobile network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.point = nn.Conv2d(8, 16, 1)
        self.norm = nn.GroupNorm(4, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.norm(self.point(self.depth(self.stem(x)))))
        return self.head(x.mean((2, 3)))


def plain_convolutions() -> Case:
    torch.manual_seed(7)
    layers = [nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return case(nn.Sequential(*layers, nn.Linear(256, 84), nn.ReLU(), nn.Linear(84, 10)), images(1, 28))


def depthwise() -> Case:
    torch.manual_seed(8)
    return case(Depthwise(), images(3, 16))


CASES: dict[str, Callable[[], Case]] = {**ZOO, "plain convolutions": plain_convolutions, "depthwise": depthwise}


def make_members(name: str, count: int = NUM_MEMBERS) -> tuple[list[nn.Module], Case]:
    """Return models of one architecture with weights and statistics of their own, in eval mode, and their case."""
    given = CASES[name]()
    return [another(given.model, seed).eval() for seed in range(count)], given


def another(model: nn.Module, seed: int) -> nn.Module:
    """Return a copy with other weights, and other statistics in its buffers."""
    made, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=0.03)
        for buffer in made.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand(buffer.shape, generator=generator, dtype=buffer.dtype), alpha=0.1)
    return made


def mapped(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Any:
    """Apply a function to each tensor of inputs."""
    return torch.utils._pytree.tree_map(function, inputs)


def rows(inputs: Inputs, count: int, shift: int = 0) -> Any:
    """Return so many samples, repeated where there are fewer, begun elsewhere."""
    return mapped(lambda tensor: tensor[(torch.arange(count) + shift) % len(tensor)].contiguous(), inputs)


def logits(output: Any) -> Tensor:
    """Return the tensor of an output that matters."""
    return output["logits"] if isinstance(output, dict) else output


@torch.no_grad()
def alone(models: list[nn.Module], inputs: list[Inputs]) -> list[Tensor]:
    """Return the answer of each model by itself."""
    return [logits(call(model, own)) for model, own in zip(models, inputs, strict=True)]


def assert_near(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Check answers to within a share of the largest of them; float32 rounds to 6e-8 of each, once per operator."""
    found, wanted = found.detach(), wanted.detach()
    scale = float(wanted.abs().max())
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= tolerance * scale
