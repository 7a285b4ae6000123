"""A member of a hybrid: one job's model with everything that training it alone would have had.

Nothing here is shared between members. A member's random state is its own: it is put in place for a turn and taken back after
it, so that company, order, pauses and restarts leave no trace in the weights (the contract, ``docs/architecture.md``).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from unified.admission import Submission
from unified.batch_order import BatchOrder
from unified.components import build_loss, build_lr_scheduler, build_optimizer
from unified.datasets import TensorData
from unified.metrics import HIGHER_IS_BETTER, Metric, build_metrics
from unified.precision import Precision
from unified.random_state import RandomState


@dataclass(slots=True, kw_only=True)
class Progress:
    """Where a member stands.

    Attributes:
        step: Optimizer steps done in all.
        epoch: Whole epochs done.
        step_in_epoch: Steps done in the epoch under way.
        loss_sum: Sum over the epoch's batches of mean loss x batch size.
        num_samples: Samples seen in the epoch under way.
        epoch_seconds: Training time of the epoch under way.
        best: Best value so far of the early-stopping metric.
        num_bad_epochs: Epochs since then.
        is_stopped: Early stopping has ended the training.
        rows: The lines of ``metrics.jsonl``.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    loss_sum: float = 0.0
    num_samples: int = 0
    epoch_seconds: float = 0.0
    best: float | None = None
    num_bad_epochs: int = 0
    is_stopped: bool = False
    rows: list[dict[str, float]] = field(default_factory=list)


class Member:
    """One job's model, loss, optimizer, schedule, precision, order of samples, random state and metrics.

    Args:
        submission: What was handed in.
        module: The model, already on ``device``; trained in place.
        train: Training data.
        test: Test data, evaluated at the end of each epoch, or None.
        device: Where the member trains.
    """

    def __init__(
        self,
        submission: Submission,
        module: nn.Module,
        train: TensorData,
        test: TensorData | None,
        device: torch.device,
    ) -> None:
        spec = submission.spec
        self.submission = submission
        self.spec = spec
        self.name = submission.name
        self.module = module
        self.train_data = train
        self.test_data = test
        self.device = device
        self.loss = build_loss(spec.loss).to(device)
        self.optimizer = build_optimizer(spec.optimizer, module.parameters())
        self.lr_scheduler = build_lr_scheduler(spec.lr_scheduler, self.optimizer, total_steps=self._num_schedule_steps())
        self.precision = Precision(spec.precision, device)
        self.order = BatchOrder(
            len(train),
            spec.batch_size,
            drop_last=spec.drop_last,
            generator=torch.Generator().manual_seed(spec.seed),
        )
        self.random = RandomState.seeded(spec.seed, device)
        self.metrics: list[Metric] = build_metrics(spec.metrics)
        self.progress = Progress()
        self.last_lr = 0.0  #: the learning rate of the last step
        self.peak_bytes = 0  #: the most that a turn of its was measured to need, by itself; 0 where that cannot be measured
        module.train()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to train."""
        return self.progress.is_stopped or self.progress.step >= self.submission.num_steps

    @property
    def held_bytes(self) -> int:
        """What it holds between two steps: weights, buffers, gradients and the optimizer's state."""
        held = [*self.module.parameters(), *self.module.buffers()]
        held += [weight.grad for weight in self.module.parameters() if weight.grad is not None]
        held += [value for state in self.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        return sum({id(tensor): tensor.nbytes for tensor in held}.values())

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last batch drawn was the last one of its epoch."""
        return self.order.step % self.order.steps_per_epoch == 0

    @property
    def every_step(self) -> bool:
        """Whether the learning-rate schedule steps with the optimizer, not with the epoch."""
        return self.spec.lr_scheduler is not None and self.spec.lr_scheduler.every == "step"

    def note_for_early_stopping(self, row: dict[str, float]) -> None:
        """Compare the row's watched metric with the best so far; stop after ``patience`` epochs without improvement."""
        rule = self.spec.early_stopping
        if rule is None:
            return
        value, progress = row[rule.metric], self.progress
        sign = 1.0 if HIGHER_IS_BETTER.get(rule.metric, False) else -1.0
        is_better = progress.best is None or sign * (value - progress.best) > rule.min_delta
        if is_better and not math.isnan(value):
            progress.best, progress.num_bad_epochs = value, 0
        else:
            progress.num_bad_epochs += 1
        progress.is_stopped = progress.num_bad_epochs >= rule.patience

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on elsewhere, as if nothing had happened; tensors are not copied.

        Non-persistent buffers are included, which ``nn.Module.state_dict`` leaves out.
        """
        return {
            "parameters": {name: parameter.detach() for name, parameter in self.module.named_parameters()},
            "buffers": dict(self.module.named_buffers()),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": None if self.lr_scheduler is None else self.lr_scheduler.state_dict(),
            "precision": self.precision.state_dict(),
            "order": self.order.state_dict(),
            "random": self.random.state_dict(),
            "progress": asdict(self.progress),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            KeyError: If a parameter or buffer of the model is missing in ``state``.
        """
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(state["parameters"][name])
            for name, buffer in self.module.named_buffers():
                buffer.copy_(state["buffers"][name])
        unknown = state["buffers"].keys() - dict(self.module.named_buffers()).keys()
        if unknown:
            raise KeyError(f"the model has no buffers {sorted(unknown)}, which its checkpoint holds")
        self._load_optimizer(state["optimizer"])
        if self.lr_scheduler is not None:
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        self.precision.load_state_dict(state["precision"])
        self.order.load_state_dict(state["order"])
        self.random = RandomState.from_state_dict(state["random"])
        self.progress = Progress(**state["progress"])

    def _load_optimizer(self, saved: dict[str, Any]) -> None:
        """Load the optimizer's state and give its tensors back the dtypes they had.

        ``Optimizer.load_state_dict`` casts them to their parameter's dtype, so that NAdam's float32 ``mu_product`` of a float64
        parameter would go on with other bits.
        """
        self.optimizer.load_state_dict(saved)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for index, values in saved["state"].items():
            own = self.optimizer.state[parameters[index]]
            for key, value in values.items():
                if isinstance(value, torch.Tensor) and own[key].dtype != value.dtype:
                    own[key] = value.to(device=own[key].device, copy=True)

    def _num_schedule_steps(self) -> int:
        return self.submission.num_steps if self.every_step else self.submission.num_epochs
