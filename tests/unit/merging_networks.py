"""Small networks for the tests of merging, their example inputs, and groups drawn at random."""

from __future__ import annotations

import functools
import random

import torch
from torch import Tensor, nn

from fusion.merging.merged import MergedNetwork
from fusion.merging.neurons import Neurons
from fusion.merging.reading import read_network
from fusion.merging.reconnect import own_groups, reconnect
from fusion.merging.union import Union, unite


class LeNet(nn.Module):
    """Two convolutions with pooling, flattening with several positions, two linear layers."""

    def __init__(self, num_outputs: int = 3, width: int = 4, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1, self.conv2 = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 6, 3)
        self.drop, self.fc1, self.fc2 = nn.Dropout(0.2), nn.Linear(6 * 2 * 2, 8), nn.Linear(8, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(self.conv1(x).relu(), 2)
        x = torch.max_pool2d(self.conv2(x).relu(), 2)
        return self.fc2(self.fc1(self.drop(x.flatten(1))).relu())


class ResNet(nn.Module):
    """Convolutions with normalization, a depthwise one, an identity skip and one through a convolution."""

    def __init__(self, num_outputs: int = 2, width: int = 4, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.norm = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.inner = nn.Conv2d(width, 5, 3, padding=1, bias=False)
        self.inner_norm, self.back = nn.BatchNorm2d(5), nn.Conv2d(5, width, 3, padding=1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.down, self.wide = nn.Conv2d(width, 6, 1, stride=2), nn.Conv2d(width, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6, num_outputs)
        for norm in (self.norm, self.inner_norm):  # statistics that matter
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.2, 0.2)
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.back(self.inner_norm(self.inner(x)).relu())).relu()
        x = self.depthwise(x).relu()
        x = (self.down(x) + self.wide(x)).relu()
        return self.head(x.mean((2, 3)))


class Mlp(nn.Module):
    """Linear layers alone, with normalization."""

    def __init__(self, num_outputs: int = 2, width: int = 6, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 7), nn.ReLU(), nn.Linear(7, num_outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Standardize(nn.Module):
    """A layer that is not understood."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm([width, 6, 6])

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).clamp(max=float("inf"))


class WithPrivate(nn.Module):
    """One with a layer ``private`` that is not understood, after a convolution that may correspond to another network's."""

    def __init__(self, num_outputs: int = 2, width: int = 4, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.private, self.head = nn.Conv2d(1, width, 3), Standardize(width), nn.Linear(width * 36, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.private(self.conv(x).relu()).flatten(1).relu())


KINDS = (LeNet, ResNet, Mlp)
SHAPES = {LeNet: (1, 12, 12), ResNet: (1, 8, 8), Mlp: (5,), WithPrivate: (1, 8, 8)}


def inputs_of(kind: type[nn.Module], rows: int = 3, seed: int = 0) -> Tensor:
    """Return inputs for networks of a kind."""
    return torch.randn(rows, *SHAPES[kind], generator=torch.Generator().manual_seed(seed))


@functools.cache
def united(kind: type[nn.Module], num_tasks: int, *, private: tuple[str, ...] = ()) -> Union:
    """Put networks of a kind together; each has its own weights and widths. Not to be changed: it is read once."""
    models = [kind(num_outputs=2 + task, width=4 + task, seed=task).eval() for task in range(num_tasks)]
    return unite(
        [read_network(model, inputs_of(kind), name="ABCD"[task], private=private) for task, model in enumerate(models)]
    )


def random_groups(union: Union, seed: int) -> dict[int, Neurons]:
    """Draw the tasks of every neuron that may be shared; every set of tasks has a neuron in every layer."""
    draw, found = random.Random(seed), {}
    every = range(1, 1 << len(union.tasks))
    for number, space in union.spaces.items():
        if space.is_input or space.frozen or len(space.widths) < len(union.tasks):
            continue
        own = own_groups(union, number)
        groups = [*every, *draw.choices(every, k=len(own))][: len(own)]
        draw.shuffle(groups)
        found[number] = Neurons(origin=own.origin, index=own.index, group=torch.tensor(groups))
    return found


def random_merged(kind: type[nn.Module], num_tasks: int, seed: int) -> MergedNetwork:
    """Return a merged network with groups at random, no edge of it at zero but the masked ones."""
    union = united(kind, num_tasks)
    merged = reconnect(union, random_groups(union, seed))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return merged
