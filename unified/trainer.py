"""One turn of one member: the only place where training happens, and where one job's failure is contained.

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
from unified.process_settings import ProcessSettings
from unified.random_state import RandomState, preserved_random_state

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


class Trainer:
    """Trains the members of one hybrid, one turn at a time.

    Args:
        hybrid: The module that holds the members.
        device: Where it is.
        num_threads: Intra-op threads of every step on a CPU.
    """

    def __init__(self, hybrid: HybridModule, device: torch.device, num_threads: int) -> None:
        self.hybrid = hybrid
        self.device = device
        self.num_threads = num_threads
        self.settings = ProcessSettings.capture()
        self.reads_loss_lazily = device.type != "cpu"
        self._meter: _LossMeter | None = None

    def settle(self, member: Member) -> None:
        """Bring the state of the member whose turn it is up to date, as a checkpoint inside the turn needs it."""
        member.random = RandomState.capture(self.device)
        if self._meter is not None:
            self._meter.settle()

    def run_turn(self, member: Member, quantum: Quantum, hooks: Hooks) -> TurnReport:
        """Train ``member`` until its quantum is used up, it is done, it fails, or ``hooks.between_steps`` says stop.

        Whatever the member's own code raises ends here, in the report; the other members are untouched.
        """
        began, first_step = time.perf_counter(), member.progress.step
        failure = None
        self._enter(member)
        try:
            self._train(member, quantum, hooks)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the one border where a job's failure is contained
            failure = describe_failure(member, error)
        finally:
            self._leave(member)
        seconds = time.perf_counter() - began
        return TurnReport(steps=member.progress.step - first_step, seconds=seconds, failure=failure)

    def _enter(self, member: Member) -> None:
        self.settings.restore(self.num_threads if self.device.type == "cpu" else None)
        member.random.restore()
        member.precision.enter_turn()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _leave(self, member: Member) -> None:
        self._meter = None
        member.random = RandomState.capture(self.device)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            member.peak_bytes = max(member.peak_bytes, torch.cuda.max_memory_allocated(self.device))

    def _train(self, member: Member, quantum: Quantum, hooks: Hooks) -> None:
        progress, is_over = member.progress, _quantum_clock(member, quantum)
        meter = self._meter = _LossMeter(member, is_lazy=self.reads_loss_lazily)
        next_report = time.perf_counter() + REPORT_SECONDS
        while not member.is_done:
            began = time.perf_counter()
            index = next(member.order)
            meter.add(_step(self.hybrid, member, index, is_lazy=self.reads_loss_lazily), len(index))
            progress.step += 1
            progress.step_in_epoch += 1
            now = time.perf_counter()
            progress.epoch_seconds += now - began
            if member.at_epoch_end or member.is_done:
                meter.settle()
                _end_epoch(self.hybrid, member, hooks, self.device)
                meter.begin_epoch()
                now = next_report
            if now >= next_report:
                hooks.on_progress(member, meter.latest())
                next_report = time.perf_counter() + REPORT_SECONDS
            if hooks.between_steps() or is_over():
                break
        meter.settle()


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


def _step(hybrid: HybridModule, member: Member, index: torch.Tensor, *, is_lazy: bool) -> torch.Tensor:
    """Do one optimizer step and return the detached loss, shape ``()``, on the member's device."""
    inputs, targets = member.train_data.batch(index, device=member.device)
    member.optimizer.zero_grad(set_to_none=True)
    with member.precision.autocast():
        output = select_output(hybrid(member.name, inputs), member.spec.output)
        loss = _loss(member, output, targets)
    # On a CPU reading the loss is free, and a NaN stops before it reaches the weights; a GPU would have to wait, so
    # there the meter looks when it reports.
    if not is_lazy:
        _check_finite(member, loss.item())
    member.precision.backward(loss)
    member.precision.step(member.optimizer, member.module, member.spec.clip_grad_norm)
    member.last_lr = member.optimizer.param_groups[0]["lr"]
    if member.every_step and member.lr_scheduler is not None:
        member.lr_scheduler.step()
    return loss.detach()


def _loss(member: Member, output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    try:
        loss = member.loss(output, targets)
    except (RuntimeError, ValueError, IndexError) as error:
        shapes = f"output {tuple(output.shape)} {output.dtype}, targets {tuple(targets.shape)} {targets.dtype}"
        raise ShapeError(f"{member.spec.loss.name} refused {shapes}: {error}") from error
    if loss.dim() != 0:
        raise ShapeError(f"loss {member.spec.loss.name} returned shape {tuple(loss.shape)}, expected a scalar; reduce it")
    return loss


def _check_finite(member: Member, value: float) -> None:
    if member.spec.on_nan == "fail" and not math.isfinite(value):
        raise NonFiniteLossError(
            f"the loss became {value}; lower lr, set clip_grad_norm, or set on_nan to 'keep' to go on regardless"
        )


class _LossMeter:
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
            _check_finite(self._member, self._member.progress.loss_sum)

    def begin_epoch(self) -> None:
        """Start again from zero."""
        self._sum.zero_()


def _quantum_clock(member: Member, quantum: Quantum) -> Callable[[], bool]:
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


def _end_epoch(hybrid: HybridModule, member: Member, hooks: Hooks, device: torch.device) -> None:
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
            loss_sum += _loss(member, output, targets).item() * len(targets)
            num_samples += len(targets)
            for metric in member.metrics:
                metric.update(output, targets)
            beat()
    member.module.train()
    return {"test_loss": loss_sum / num_samples} | {metric.name: metric.compute() for metric in member.metrics}
