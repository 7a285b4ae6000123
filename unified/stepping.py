"""The pieces of a turn: one plain optimizer step, what is noted after it, the end of an epoch, why a member failed.

The arithmetic is that of the plain loop (``docs/architecture.md``, "The contract"): zero gradients, forward, loss, backward,
clip, step, schedule, in this order and with PyTorch's own pieces.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch

from schedulers.base import Epochs, Quantum, Seconds, Steps
from unified.budgets import Fault
from unified.components import needs_metric, select_output
from unified.hybrid import HybridModule
from unified.member import Member
from unified.random_state import preserved_random_state

REPORT_SECONDS = 0.25
BEAT_SECONDS = 5.0


class NonFiniteLossError(Exception):
    """The loss became NaN or infinite and the job asked to fail then."""


class ShapeError(Exception):
    """Model, loss and targets do not fit together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a job failed: one line for people, the whole story for its log, and by whose fault."""

    reason: str
    log: str
    fault: Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnReport:
    """What a turn did.

    Attributes:
        steps: Optimizer steps done in this turn.
        seconds: Wall time of the turn.
        failure: Why the member failed, or None.
    """

    steps: int
    seconds: float
    failure: Failure | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What the host wants to hear, and to do between two steps.

    Attributes:
        between_steps: Called at each step boundary; True ends the turn there. Random state is its own affair to preserve.
        on_progress: Called with the latest loss a few times a second.
        on_epoch: Called with each new row of metrics.
    """

    between_steps: Callable[[], bool]
    on_progress: Callable[[Member, float], None]
    on_epoch: Callable[[Member, dict[str, float]], None]


class MemberTurn:
    """What is noted of one member while it has a turn: its progress, its losses, its epochs, what its host is told.

    Args:
        hybrid: The module that holds the member.
        member: Whose turn it is.
        hooks: What the host wants to hear.
        is_lazy: Read losses only when they are reported, so that no step waits for a GPU.
    """

    def __init__(self, hybrid: HybridModule, member: Member, hooks: Hooks, *, is_lazy: bool) -> None:
        self.member = member
        self._hybrid = hybrid
        self._hooks = hooks
        self._is_lazy = is_lazy
        self._meter = LossMeter(member, is_lazy=is_lazy)
        self._began, self._first_step = time.perf_counter(), member.progress.step
        self._next_report = self._began + REPORT_SECONDS

    def step_alone(self, index: torch.Tensor, began: float) -> None:
        """Do one plain step on the samples ``index`` and note it; it began, their draw included, at ``began``."""
        loss = step(self._hybrid, self.member, index, is_lazy=self._is_lazy)
        self.note(loss, len(index), time.perf_counter() - began)

    def note(self, loss: torch.Tensor, num_samples: int, seconds: float) -> None:
        """Note a step that was done."""
        progress = self.member.progress
        self._meter.add(loss, num_samples)
        progress.step += 1
        progress.step_in_epoch += 1
        progress.epoch_seconds += seconds

    @property
    def ends_epoch(self) -> bool:
        """Whether an epoch, whole or not, ends with the step just noted."""
        return self.member.at_epoch_end or self.member.is_done

    def end_epoch(self) -> None:
        """Evaluate and record the epoch's row; the host is told where the member stands next."""
        self._meter.settle()
        end_epoch(self._hybrid, self.member, self._hooks, self.member.device)
        self._meter.begin_epoch()
        self._next_report = 0.0

    def report_if_due(self) -> None:
        """Tell the host of the latest loss, a few times a second."""
        if time.perf_counter() >= self._next_report:
            self._hooks.on_progress(self.member, self._meter.latest())
            self._next_report = time.perf_counter() + REPORT_SECONDS

    def settle(self) -> None:
        """Bring the member's progress up to date, and fail if its loss is not finite."""
        self._meter.settle()

    def report(self, failure: Failure | None = None) -> TurnReport:
        """Return what the turn did until now."""
        steps = self.member.progress.step - self._first_step
        return TurnReport(steps=steps, seconds=time.perf_counter() - self._began, failure=failure)


def describe_failure(member: Member, error: BaseException) -> Failure:
    """Say in one line what went wrong in the member's own step, and keep the traceback for its log."""
    text, fault = " ".join(str(error).split()) or type(error).__name__, fault_of(error)
    kind = "" if isinstance(error, (NonFiniteLossError, ShapeError)) else f"{type(error).__name__}: "
    if fault is Fault.OUT_OF_MEMORY:
        kind, text = "out of memory: ", f"{text}; lower batch_size (it is {member.spec.batch_size})"
    where = f"at step {member.progress.step + 1} (epoch {member.progress.epoch + 1})"
    log = "".join(traceback.format_exception(error))
    return Failure(reason=f"{kind}{text[:500]} {where}", log=log, fault=fault)


def fault_of(error: BaseException) -> Fault:
    """Return what kind of failure an error is."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error):
        return Fault.OUT_OF_MEMORY
    return Fault.INVALID if isinstance(error, ShapeError) else Fault.OWN


def step(hybrid: HybridModule, member: Member, index: torch.Tensor, *, is_lazy: bool) -> torch.Tensor:
    """Do one optimizer step and return the detached loss, shape ``()``, on the member's device."""
    inputs, targets = member.train_data.batch(index, device=member.device)
    member.optimizer.zero_grad(set_to_none=True)
    with member.precision.autocast():
        output = select_output(hybrid(member.name, inputs), member.spec.output)
        loss = loss_of(member, output, targets)
    # On a CPU reading the loss is free, and a NaN stops before it reaches the weights; a GPU would have to wait, so
    # there the meter looks when it reports.
    if not is_lazy:
        check_finite(member, loss.item())
    member.precision.backward(loss)
    member.precision.step(member.optimizer, member.module, member.spec.clip_grad_norm)
    member.last_lr = member.optimizer.param_groups[0]["lr"]
    if member.every_step and member.lr_scheduler is not None:
        member.lr_scheduler.step()
    return loss.detach()


def loss_of(member: Member, output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the member's loss, shape ``()``; what does not fit together is told with all shapes."""
    try:
        loss = member.loss(output, targets)
    except (RuntimeError, ValueError, IndexError) as error:
        shapes = f"output {tuple(output.shape)} {output.dtype}, targets {tuple(targets.shape)} {targets.dtype}"
        raise ShapeError(f"{member.spec.loss.name} refused {shapes}: {error}") from error
    if loss.dim() != 0:
        raise ShapeError(f"loss {member.spec.loss.name} returned shape {tuple(loss.shape)}, expected a scalar; reduce it")
    return loss


def check_finite(member: Member, value: float) -> None:
    """Fail if a loss is not finite and the job asked to fail then."""
    if member.spec.on_nan == "fail" and not math.isfinite(value):
        raise NonFiniteLossError(
            f"the loss became {value}; lower lr, set clip_grad_norm, or set on_nan to 'keep' to go on regardless"
        )


class LossMeter:
    """Sums mean loss x batch size over an epoch in float64.

    Args:
        member: Whose epoch it is.
        is_lazy: Sum on the device and read the sum only when it is asked for, so that no step waits for a GPU.
    """

    def __init__(self, member: Member, *, is_lazy: bool) -> None:
        self._member = member
        self._is_lazy = is_lazy
        self._latest: torch.Tensor | None = None
        self._sum = torch.tensor(member.progress.loss_sum, dtype=torch.float64, device=member.device)

    def add(self, loss: torch.Tensor, num_samples: int) -> None:
        """Take note of one batch."""
        self._latest = loss
        progress = self._member.progress
        progress.num_samples += num_samples
        if self._is_lazy:
            self._sum += loss.double() * num_samples
        else:
            progress.loss_sum += loss.item() * num_samples

    def latest(self) -> float:
        """Return the latest batch's loss, after :meth:`settle`."""
        self.settle()
        return math.nan if self._latest is None else self._latest.item()

    def settle(self) -> None:
        """Bring what was summed on the device into the member's progress, and fail if it is not finite."""
        if self._is_lazy:
            self._member.progress.loss_sum = self._sum.item()
            check_finite(self._member, self._member.progress.loss_sum)

    def begin_epoch(self) -> None:
        """Start again from zero."""
        self._sum.zero_()


def quantum_clock(member: Member, quantum: Quantum) -> Callable[[], bool]:
    """Return a function that says whether the quantum, begun now, is used up."""
    progress = member.progress
    match quantum:
        case Steps():
            last_step = progress.step + quantum.count
            return lambda: progress.step >= last_step
        case Epochs():
            last_epoch = progress.epoch + quantum.count
            return lambda: progress.epoch >= last_epoch
        case Seconds():
            deadline = time.perf_counter() + quantum.count
            return lambda: time.perf_counter() >= deadline
    return lambda: False


def end_epoch(hybrid: HybridModule, member: Member, hooks: Hooks, device: torch.device) -> None:
    """Evaluate, step an epoch-wise schedule, record a row, reset the epoch's counters."""
    progress, is_whole = member.progress, member.at_epoch_end
    row = {
        "epoch": progress.epoch + 1,
        "step": progress.step,
        "lr": float(member.last_lr),
        "train_loss": progress.loss_sum / progress.num_samples,
    }
    with preserved_random_state(device):
        row |= evaluate(hybrid, member, _heartbeat(member, hooks))
    if is_whole:
        _step_schedule(member, row)
        progress.epoch += 1
    row["seconds"] = progress.epoch_seconds
    row["samples_per_second"] = progress.num_samples / max(progress.epoch_seconds, 1e-9)
    progress.rows.append(row)
    progress.step_in_epoch, progress.loss_sum, progress.num_samples, progress.epoch_seconds = 0, 0.0, 0, 0.0
    member.note_for_early_stopping(row)
    hooks.on_epoch(member, row)


def _step_schedule(member: Member, row: dict[str, float]) -> None:
    if member.lr_scheduler is None or member.every_step:
        return
    if needs_metric(member.lr_scheduler):
        # pyrefly: ignore[bad-argument-type]  # ReduceLROnPlateau.step takes a metric, its base class an epoch
        member.lr_scheduler.step(row.get("test_loss", row["train_loss"]))
    else:
        member.lr_scheduler.step()


def _heartbeat(member: Member, hooks: Hooks) -> Callable[[], None]:
    """Return a function that says now and then that an evaluation is still under way, in which no step is done."""
    mean_loss = member.progress.loss_sum / member.progress.num_samples
    last = time.perf_counter()

    def beat() -> None:
        nonlocal last
        if time.perf_counter() - last >= BEAT_SECONDS:
            last = time.perf_counter()
            hooks.on_progress(member, mean_loss)

    return beat


def evaluate(hybrid: HybridModule, member: Member, beat: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Return ``test_loss`` and the member's metrics over its test set, in order; empty without one.

    The model is in eval mode meanwhile and in train mode afterwards. No gradient is computed. ``beat`` is called after each
    batch.
    """
    if member.test_data is None:
        return {}
    member.module.eval()
    loss_sum, num_samples = 0.0, 0
    for metric in member.metrics:
        metric.reset()
    with torch.no_grad(), member.precision.autocast():
        for inputs, targets in member.test_data.batches(member.spec.batch_size, device=member.device):
            output = select_output(hybrid(member.name, inputs), member.spec.output)
            loss_sum += loss_of(member, output, targets).item() * len(targets)
            num_samples += len(targets)
            for metric in member.metrics:
                metric.update(output, targets)
            beat()
    member.module.train()
    return {"test_loss": loss_sum / num_samples} | {metric.name: metric.compute() for metric in member.metrics}
