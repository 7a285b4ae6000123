"""Train a merged network on all its tasks; what several tasks share follows the mean of their gradients (PAM, 5.1, step 5)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusion.merging.layers import Kind
from fusion.merging.merged import Gate, MergedNetwork
from fusion.merging.samples import Loss, Samples, batches, loss_for

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
        extra: Parameters that are trained beside the network's.
    """

    def __init__(
        self,
        merged: MergedNetwork,
        samples: Samples,
        config: TrainConfig,
        *,
        losses: Mapping[str, Loss] | None = None,
        extra: Collection[nn.Parameter] = (),
    ) -> None:
        self.merged = merged
        self.config = config
        self.losses = {task: loss_for(samples.labels[task]) for task in merged.tasks} | dict(losses or {})
        parameters = [*merged.parameters(), *extra]
        self.optimizer = torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
        self._batches: Iterator[Samples] = batches(samples, config.batch_size, torch.Generator().manual_seed(config.seed))

    def train(self, steps: int, *, lr: float | None = None, penalty: Callable[[], Tensor] | None = None) -> None:
        """Take some steps in training mode; the network is in evaluation mode afterwards, its statistics renewed.

        Args:
            steps: How many.
            lr: Learning rate at the first step, falling to a tenth by a cosine; the configuration's if None.
            penalty: Added to the loss.
        """
        start = self.config.lr if lr is None else lr
        self.merged.train()
        for number in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"] = start * _cosine(number / max(steps, 1))
            batch = self.next_batch()
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.loss(batch)
            (loss if penalty is None else loss + penalty()).backward()
            average_shared(self.merged)
            self.optimizer.step()
        self.merged.eval()
        self.recalibrate()

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
