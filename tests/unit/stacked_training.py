"""Members of a stack and the same models trained alone by the loop that anyone would write, to compare the two."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from fusion.stacking.choices import Choices
from fusion.stacking.member_random import MemberRandom
from fusion.stacking.stack import Stack
from fusion.stacking.training import StackedTraining
from tests.zoo import Inputs, call, loss_of

Draw = Callable[[int], tuple[Inputs, Tensor]]
MakeOptimizer = Callable[[nn.Module, int], Optimizer]

#: With Adam's usual eps of 1e-8 a gradient that is 0 but for rounding (a bias before a norm, a key's bias) moves its weight
#: by that rounding x lr / eps, and two right programs differ by as much. A larger eps keeps out what is noise.
EPS = 1e-3
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": lambda m, i: optim.SGD(m.parameters(), lr=0.02 * (i + 1), momentum=0.9 / (i + 1), weight_decay=1e-3 * i),
    "adam": lambda m, i: optim.Adam(m.parameters(), lr=1e-3 * (i + 1), betas=(0.9 / (i + 1), 0.99), eps=EPS),
    "adamw": lambda m, i: optim.AdamW(m.parameters(), lr=1e-3 * (i + 1), weight_decay=0.05 * i, eps=EPS),
}
CLIPS: tuple[float | None, ...] = (1.0, None, 0.1, 5.0)
BATCH = 4


@dataclass(slots=True)
class Alone:
    """A model that trains alone, with its own random state."""

    model: nn.Module
    optimizer: Optimizer
    draw: Draw
    clip: float | None
    generator: torch.Generator
    data: torch.Generator
    losses: list[float] = field(default_factory=list)

    def batch(self) -> tuple[Inputs, Tensor]:
        """Draw the next batch of this member's own data."""
        with torch.random.fork_rng():
            torch.set_rng_state(self.data.get_state())
            drawn = self.draw(BATCH)
            self.data.set_state(torch.get_rng_state())
        return drawn

    def step(self, batch: tuple[Inputs, Tensor]) -> None:
        """Make one step in plain PyTorch."""
        with torch.random.fork_rng():
            torch.set_rng_state(self.generator.get_state())
            self.optimizer.zero_grad()
            loss = loss_of(call(self.model, batch[0]), batch[1])
            loss.backward()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
            self.losses.append(loss.item())
            self.generator.set_state(torch.get_rng_state())


def alone(models: Sequence[nn.Module], draw: Draw, optimizer: str, *, first: int = 0) -> list[Alone]:
    """Return members with their own hyper-parameters, seeds, clipping and data; the models are used as they are."""
    return [
        Alone(
            model=model,
            optimizer=OPTIMIZERS[optimizer](model, index),
            draw=draw,
            clip=CLIPS[index % len(CLIPS)],
            generator=torch.Generator().manual_seed(100 + index),
            data=torch.Generator().manual_seed(200 + index),
        )
        for index, model in enumerate(models, start=first)
    ]


def varied(model: nn.Module, count: int, dtype: torch.dtype, *, seed: int = 0) -> list[nn.Module]:
    """Return copies of a model in train mode with other weights each."""
    generator = torch.Generator().manual_seed(seed)
    made = [copy.deepcopy(model).to(dtype).train() for _ in range(count)]
    with torch.no_grad():
        for each in made:
            for parameter in each.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
                parameter.add_(noise * 0.1 * parameter.std().nan_to_num(0.1).clamp(min=0.02))
    return made


def of_dtype(draw: Draw, dtype: torch.dtype) -> Draw:
    """Let floating point inputs have this dtype; the numbers are the same."""

    def drawn(size: int) -> tuple[Inputs, Tensor]:
        inputs, target = draw(size)
        if isinstance(inputs, Tensor) and inputs.is_floating_point():
            inputs = inputs.to(dtype)
        return inputs, target

    return drawn


class Pair:
    """The same members twice: each alone, and all in stacks."""

    def __init__(
        self, models: Sequence[nn.Module], draw: Draw, optimizer: str, *, forced: Sequence[str] = (), width: int | None = None
    ) -> None:
        self.alone = alone(models, draw, optimizer)
        self.twins = alone([copy.deepcopy(model) for model in models], draw, optimizer)
        self.training = StackedTraining(
            [each.model for each in self.twins],
            [each.optimizer for each in self.twins],
            random=MemberRandom([each.generator for each in self.twins]),
            choices=Choices(forced),
            width=width,
        )
        self.worst_loss = 0.0

    def step(self) -> None:
        """Make one step of all members, alone and stacked, on the same batches."""
        batches = [each.batch() for each in self.alone]
        for each, batch in zip(self.alone, batches, strict=True):
            each.step(batch)

        def merged(positions: Sequence[int]) -> tuple[Any, Any]:
            return Stack.merge([batches[p][0] for p in positions]), Stack.merge([batches[p][1] for p in positions])

        losses = self.training.step(merged, stacked_loss, [each.clip for each in self.alone])
        expected = torch.tensor([each.losses[-1] for each in self.alone], dtype=torch.float64)
        self.worst_loss = max(self.worst_loss, ((losses.double() - expected).abs() / expected.abs()).max().item())

    def step_alone(self, position: int) -> None:
        """Let a member step alone in between, as one does whose batch is another."""
        batch = self.alone[position].batch()
        self.alone[position].step(batch)
        self.training.settle(position)
        self.twins[position].step(batch)
        self.training.take(position)

    def leave(self, position: int) -> tuple[Alone, Alone]:
        """Take a member out of both; gives the two, which go on alone."""
        self.training.settle(position)
        self.training.remove(position)
        return self.alone.pop(position), self.twins.pop(position)

    def join(self, model: nn.Module, draw: Draw, optimizer: str, index: int) -> None:
        """Let another member join both."""
        (own,), (twin,) = (
            alone([model], draw, optimizer, first=index),
            alone([copy.deepcopy(model)], draw, optimizer, first=index),
        )
        self.alone.append(own)
        self.twins.append(twin)
        self.training.append(twin.model, twin.optimizer, MemberRandom([twin.generator]))

    def difference(self) -> float:
        """Return the largest relative difference in any weight, buffer or optimizer state of the members' own modules."""
        self.training.settle_all()
        return max(between(one, other) for one, other in zip(self.alone, self.twins, strict=True))


def stacked_loss(module: nn.Module, inputs: Any, targets: Any) -> Tensor:
    """The loss of all members, as of one."""
    return loss_of(call(module, inputs), targets)


def between(one: Alone, other: Alone) -> float:
    """Return the largest relative difference between two members, and check that they drew the same random numbers."""
    assert torch.equal(one.generator.get_state(), other.generator.get_state())
    ours, theirs = (dict(each.model.named_parameters()) | dict(each.model.named_buffers()) for each in (one, other))
    assert ours.keys() == theirs.keys()
    worst = max(relative(theirs[name], value) for name, value in ours.items())
    return max(worst, _between_states(one.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"]))


def _between_states(ours: Mapping[int, Mapping[str, Any]], theirs: Mapping[int, Mapping[str, Any]]) -> float:
    assert ours.keys() == theirs.keys()
    worst = 0.0
    for index, entry in ours.items():
        assert entry.keys() == theirs[index].keys()
        for key, value in entry.items():
            worst = max(worst, relative(torch.as_tensor(theirs[index][key]), torch.as_tensor(value)))
    return worst


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference in a tensor relative to its largest number.

    Below 0.01 it counts as absolute: a key's bias, whose gradient is nothing but rounding, stays at 1e-18, and so may be
    wrong by all of it.
    """
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if not expected.is_floating_point():
        return 0.0 if torch.equal(found, expected) else float("inf")
    if not expected.numel():
        return 0.0
    apart = (found.detach().double() - expected.detach().double()).abs().max().item()
    return apart / max(expected.detach().abs().max().item(), 0.01)
