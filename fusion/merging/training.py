"""Train a merged network on all its tasks; what several tasks share follows the mean of their gradients (PAM, 5.1, step 5)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fusion.merging.errors import MergeError
from fusion.merging.layers import Kind
from fusion.merging.merged import Gate, MergedNetwork, Part
from fusion.merging.neurons import Neurons
from fusion.merging.resizing import resize
from fusion.merging.samples import Loss, Samples, batches, loss_for
from fusion.merging.vib import Bottleneck

RECALIBRATION_BATCHES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How a merged or a single network is trained; the paper does not say.

    Attributes:
        lr: Adam's learning rate.
        batch_size: Samples of a step.
        weight_decay: Adam's.
        seed: Of the order of samples.
    """

    lr: float = 1e-3
    batch_size: int = 64
    weight_decay: float = 0.0
    seed: int = 0


class Trainer:
    """Trains one network; its optimizer and its place in the data last from one call to the next.

    Args:
        merged: Changed in place. It may be resized between calls, if ``optimizer`` is handed to that.
        samples: With labels of all tasks.
        config: How.
        losses: By task; by default what the labels call for.
        bottleneck: Noise on its neurons, trained along; None without.
        kl: Weight of the bottleneck's penalty.
    """

    def __init__(
        self,
        merged: MergedNetwork,
        samples: Samples,
        config: TrainConfig,
        *,
        losses: Mapping[str, Loss] | None = None,
        bottleneck: Bottleneck | None = None,
        kl: float = 0.0,
    ) -> None:
        self.merged = merged
        self.config = config
        self.bottleneck, self.kl = bottleneck, kl
        is_single = min(config.batch_size, len(samples)) == 1
        if is_single and any(step.kind is Kind.NORM and step.positions == 1 for step in merged.steps):
            raise MergeError("batches of one sample, which have no variance to normalize by; expected batch_size of 2 or more")
        self.losses = {task: loss_for(samples.labels[task]) for task in merged.tasks} | dict(losses or {})
        self.optimizer = torch.optim.Adam(self._parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self._batches: Iterator[Samples] = batches(samples, config.batch_size, torch.Generator().manual_seed(config.seed))

    def train(self, steps: int, *, lr: float | None = None) -> None:
        """Take some steps in training mode; the network is in evaluation mode afterwards, its statistics renewed.

        Args:
            steps: How many.
            lr: Learning rate at the first step, falling to a tenth by a cosine; the configuration's if None.
        """
        start = self.config.lr if lr is None else lr
        self.merged.train()
        for number in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"] = start * _cosine(number / max(steps, 1))
            self.optimizer.zero_grad(set_to_none=True)
            self._training_loss(self.next_batch()).backward()
            average_shared(self.merged)
            self.optimizer.step()
        self.merged.eval()
        self.recalibrate()

    def answer(self, x: Tensor) -> dict[str, Tensor]:
        """Return what the network answers in evaluation mode, without noise and without gradients."""
        with torch.no_grad():
            return self.merged(x, gate=self._mean_gate())

    def resize(self, kept: Mapping[int, Tensor], groups: Mapping[int, Tensor] | None = None) -> None:
        """Keep only some neurons, as :func:`fusion.merging.resizing.resize` does."""
        resize(self.merged, kept, groups, self.optimizer)
        if self.bottleneck is not None:
            self.bottleneck.resize(kept, self.optimizer)

    def snapshot(self) -> Snapshot:
        """Return all that training and resizing change, but for the place in the data."""
        parameters = self._parameters()
        return Snapshot(
            neurons=dict(self.merged.neurons),
            parameters=[parameter.detach().clone() for parameter in parameters],
            statistics=[{name: value.clone() for name, value in _statistics(part).items()} for part in _parts(self.merged)],
            states=[_cloned(self.optimizer.state.get(parameter, {})) for parameter in parameters],
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Put back what a snapshot holds."""
        self.merged.neurons = dict(snapshot.neurons)
        for parameter, value, state in zip(self._parameters(), snapshot.parameters, snapshot.states, strict=True):
            parameter.data = value.clone()
            parameter.grad = None
            self.optimizer.state[parameter] = _cloned(state)
        for part, values in zip(_parts(self.merged), snapshot.statistics, strict=True):
            for name, value in values.items():
                setattr(part, name, value.clone())
        self.merged.set_masks()

    def _parameters(self) -> list[nn.Parameter]:
        return [*self.merged.parameters(), *(self.bottleneck.parameters() if self.bottleneck is not None else ())]

    def _training_loss(self, batch: Samples) -> Tensor:
        if self.bottleneck is None:
            return self.loss(batch)
        tasks = self.merged.tasks
        noisy = [self.loss(batch, [task], self.bottleneck.noisy(self.merged, number)) for number, task in enumerate(tasks)]
        return torch.stack(noisy).sum() + self.kl * self.bottleneck.penalty(self.merged)

    def _mean_gate(self) -> Gate | None:
        return None if self.bottleneck is None else partial(self.bottleneck.mean, self.merged)

    def next_batch(self) -> Samples:
        """Return the next training batch."""
        return next(self._batches)

    def loss(self, batch: Samples, tasks: Collection[str] | None = None, gate: Gate | None = None) -> Tensor:
        """Return the sum of the losses of some tasks, all if None."""
        answers = self.merged(batch.inputs, tasks, gate)
        return torch.stack([self.losses[task](answer, batch.labels[task]) for task, answer in answers.items()]).sum()

    def recalibrate(self) -> None:
        """Renew the statistics of normalization, if there is any."""
        if any(step.kind is Kind.NORM for step in self.merged.steps):
            recalibrate(self.merged, [self.next_batch().inputs for _ in range(RECALIBRATION_BATCHES)])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """A network, its bottleneck and its optimizer at one moment."""

    neurons: dict[int, Neurons]
    parameters: list[Tensor]
    statistics: list[dict[str, Tensor]]
    states: list[dict[str, Any]]


def average_shared(merged: MergedNetwork) -> None:
    """Divide the gradients of each neuron's row by the number of tasks it serves.

    With a loss that is the sum over tasks this is the paper's mean of gradients taken apart, and leaves the rows of exclusive
    neurons alone.
    """
    for position, step in enumerate(merged.steps):
        if str(position) not in merged.parts:
            continue
        share = 1.0 / torch.tensor([group.bit_count() for group in merged.groups(step).tolist()])
        if bool((share == 1).all()):
            continue
        for parameter in merged.part(position).parameters(recurse=False):
            if parameter.grad is not None:
                parameter.grad.mul_(share.to(parameter.grad).view(-1, *[1] * (parameter.ndim - 1)))


def recalibrate(merged: MergedNetwork, inputs: Collection[Tensor]) -> None:
    """Set the statistics of normalization to their mean over some batches, layer after layer in one pass each.

    A shared neuron has one value whatever tasks run, so that one set of statistics is right for all of them.
    """
    was = merged.training
    merged.train()
    with torch.no_grad():
        for number, batch in enumerate(inputs):
            merged.momentum = 1 / (number + 1)  # so that the running statistics become the mean over the batches
            merged(batch)
    merged.momentum = None
    merged.train(was)


def _cosine(share: float) -> float:
    """Return the factor of the learning rate after a share of the steps: 1 at 0, a tenth at 1."""
    return 0.1 + 0.9 * 0.5 * (1 + float(torch.cos(torch.tensor(share * torch.pi))))


def _parts(merged: MergedNetwork) -> list[Part]:
    return [part for part in merged.parts.values() if isinstance(part, Part)]


def _statistics(part: Part) -> dict[str, Tensor]:
    found = {"running_mean": part.running_mean, "running_var": part.running_var}
    return {name: value for name, value in found.items() if value is not None}


def _cloned(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
