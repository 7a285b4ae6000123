"""Estimates what a job needs before it runs: memory, floating-point operations and operators of one training step.

The step is run on fake tensors: shapes, types and lifetimes are true, nothing is allocated and nothing is computed, so that a
model of terabytes is measured in the time of its operators. Where a model asks for values, which fake tensors lack, real
steps are taken at two small batch sizes and extrapolated.
"""

from __future__ import annotations

import contextlib
import random
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from unified.admission import Estimate
from unified.components import select_output
from unified.device import host_memory
from unified.errors import DoesNotFitError
from unified.fake_copy import fake_copy, real_copy
from unified.memory_tracker import MemoryTracker
from unified.quantities import bytes_text
from unified.random_state import preserved_random_state

Inputs = torch.Tensor | Mapping[str, torch.Tensor]
OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

#: Batch sizes of the real steps; from two on, BatchNorm accepts a batch.
SMALL_BATCHES = (2, 4)

#: What tracing a step may take; of the models in the benchmarks none takes ten seconds.
MAX_SECONDS = 120.0

_CUDA_GRANULARITY = 512  # the caching allocator rounds each tensor up to this

# What a model may raise on fake tensors: for want of values, of a kernel, of memory to point at.
_REFUSALS = (
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    LookupError,
    ArithmeticError,
)


def estimate(  # noqa: PLR0913 - the parts of a job are what they are
    module: nn.Module,
    loss: nn.Module | Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    optimizer_factory: OptimizerFactory,
    batch: tuple[Inputs, torch.Tensor],
    *,
    batch_size: int,
    device_type: str = "cpu",
    autocast_dtype: torch.dtype | None = None,
    output: str | int | None = None,
    eval_batch_size: int | None = None,
) -> Estimate:
    """Measure one training step and one evaluation batch without running them.

    Nothing given is changed, no random number is drawn and, unless the model needs values (see the module's text), no memory
    is allocated. A temporary copy of what is hidden inside operators is known for oneDNN (CPU); for cuDNN it is a guess.

    Args:
        module: The model, on any device, ``meta`` included.
        loss: Called with ``(output, targets)``; gives a scalar.
        optimizer_factory: Makes the optimizer from the parameters.
        batch: Inputs, one tensor ``(samples, ...)`` or a dict of them, and targets ``(samples, ...)``; any number of
            samples from one on. Only shapes and dtypes are used, values only where the model cannot do without.
        batch_size: Samples of a training step.
        device_type: ``"cpu"`` or ``"cuda"``; without CUDA at hand, ``"cuda"`` is estimated as on a CPU.
        autocast_dtype: Type for ``torch.autocast``, or None for full precision.
        output: Which output of the model goes to the loss, as in ``JobSpec``.
        eval_batch_size: Samples of an evaluation batch; ``batch_size`` by default.

    Raises:
        SlowEstimateError: If that takes longer than ``MAX_SECONDS``.
        DoesNotFitError: If real steps are needed and the model itself does not fit this host.
        Exception: What the model or the loss raises on a real batch, if it does.

    Example:
        >>> step = estimate(
        ...     torch.nn.Linear(10, 2), torch.nn.CrossEntropyLoss(), torch.optim.Adam,
        ...     (torch.zeros(1, 10), torch.zeros(1, dtype=torch.int64)), batch_size=64,
        ... )
        >>> step.num_parameters, step.resident_bytes, step.flops_per_step  # weights, gradients, two moments, step counts
        (22, 360, 5120)
    """
    device = torch.device(device_type if device_type != "cuda" or torch.cuda.is_available() else "cpu")
    job = _Job(module, loss, optimizer_factory, batch, device, autocast_dtype, output)
    sizes = (batch_size, eval_batch_size or batch_size)
    with _undisturbed(device):
        try:
            return _to_estimate(module, _trace_fake(job, sizes))
        except _REFUSALS:
            if any(tensor.is_meta for tensor in _tensors(module)):
                raise
            # If the model itself is at fault, the real step says so in its own words.
            return _to_estimate(module, _extrapolate_real(job, sizes))


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters, each tied one counted once.

    >>> count_parameters(torch.nn.Linear(10, 2))
    22
    """
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass(frozen=True, slots=True)
class _Job:
    """What :func:`estimate` was given."""

    module: nn.Module
    loss: nn.Module | Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    optimizer_factory: OptimizerFactory
    batch: tuple[Inputs, torch.Tensor]
    device: torch.device
    autocast_dtype: torch.dtype | None
    output: str | int | None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)


@dataclass(frozen=True, slots=True)
class _Trace:
    """Live bytes after each operator, as from the second step on, when the optimizer's state is there."""

    resident_bytes: int
    timeline: list[int]
    flops: int
    num_ops: int
    eval_timeline: list[int]
    eval_flops: int


def _trace_fake(job: _Job, sizes: tuple[int, int]) -> _Trace:
    mode = FakeTensorMode(allow_fallback_kernels=False, allow_non_fake_inputs=True)
    module, loss = fake_copy((job.module, job.loss), mode, job.device)

    def make_batch(size: int) -> tuple[Inputs, torch.Tensor]:
        return tree_map(lambda t: torch.empty((size, *t.shape[1:]), dtype=t.dtype, device=job.device), job.batch)

    with mode:
        trace = _trace(job, module, loss, make_batch, sizes)
    if any(parameter.grad is not None and parameter.grad.is_sparse for parameter in module.parameters()):
        raise RuntimeError("fake tensors do not know how many entries a sparse gradient has")
    return trace


def _extrapolate_real(job: _Job, sizes: tuple[int, int]) -> _Trace:
    """Take real steps at small batch sizes; live bytes after each operator are linear in the batch size."""
    needed = 4 * sum(t.nbytes for t in (*job.module.parameters(), *job.module.buffers()))
    available = host_memory().available_bytes
    if needed > available:
        raise DoesNotFitError(
            f"the model needs real values to be measured and about {bytes_text(needed)} for it, {bytes_text(available)} are "
            "available; make its forward independent of tensor values, or use a smaller model"
        )

    def make_batch(size: int) -> tuple[Inputs, torch.Tensor]:
        return tree_map(lambda t: _repeated(t, size), job.batch)

    def trace(batch_size: int) -> _Trace:
        module, loss = real_copy((job.module, job.loss))
        return _trace(job, module, loss, make_batch, (batch_size, batch_size))

    low, high = SMALL_BATCHES
    if max(sizes) <= high:
        return trace(max(sizes))
    return _extended(trace(low), trace(high), (max(sizes) - high) / (high - low))


def _extended(low: _Trace, high: _Trace, factor: float) -> _Trace:
    """Go on from ``high`` by ``factor`` times what it has more than ``low``, operator by operator where they are the same."""

    def extend(first: int, second: int) -> int:
        return max(second, second + round(factor * (second - first)))

    def extend_each(first: list[int], second: list[int]) -> list[int]:
        if len(first) == len(second):
            return [extend(*pair) for pair in zip(first, second, strict=True)]
        return [extend(max(first), max(second))]

    return _Trace(
        resident_bytes=extend(low.resident_bytes, high.resident_bytes),  # sparse gradients grow with the batch
        timeline=extend_each(low.timeline, high.timeline),
        flops=extend(low.flops, high.flops),
        num_ops=extend(low.num_ops, high.num_ops),
        eval_timeline=extend_each(low.eval_timeline, high.eval_timeline),
        eval_flops=extend(low.eval_flops, high.eval_flops),
    )


def _trace(
    job: _Job,
    module: nn.Module,
    loss: Any,
    make_batch: Callable[[int], tuple[Inputs, torch.Tensor]],
    sizes: tuple[int, int],
) -> _Trace:
    """Run a step and an evaluation batch of ``module``, a copy that nobody else holds."""
    tracker = _tracker(job.device, _tensors(module, loss))
    with tracker:
        optimizer = job.optimizer_factory(module.parameters())
        _prefer_foreach(optimizer, job.device)
        step = _train_step(job, tracker, (module.train(), loss, optimizer), make_batch(sizes[0]))
        before_evaluation, flops_before = len(tracker.timeline), tracker.flops
        with torch.no_grad(), job.autocast():
            _loss(job, module.eval(), loss, make_batch(sizes[1]))
    kept = [*module.parameters(), *module.buffers(), *optimizer.state.values()]
    kept += [parameter.grad for parameter in module.parameters()]
    return _Trace(
        resident_bytes=_tracker(job.device, kept).live_bytes,
        timeline=step.timeline,
        flops=step.flops,
        num_ops=step.num_ops,
        eval_timeline=tracker.timeline[before_evaluation:],
        eval_flops=tracker.flops - flops_before,
    )


@dataclass(frozen=True, slots=True)
class _Step:
    """A training step: live bytes after each operator, and what it did."""

    timeline: list[int]
    flops: int
    num_ops: int


def _train_step(
    job: _Job,
    tracker: MemoryTracker,
    parts: tuple[nn.Module, Any, torch.optim.Optimizer],
    batch: tuple[Inputs, torch.Tensor],
) -> _Step:
    """Run one step as the trainer does, its last part twice: the optimizer's state comes with its first step only."""
    module, loss, optimizer = parts
    start, num_ops_before = len(tracker.timeline), tracker.num_ops
    with job.autocast():
        # The model's output is held until the step is over, as it is in the trainer.
        _output, value = _loss(job, module, loss, batch)
    tracker.is_backward = True
    value.backward()
    tracker.is_backward = False
    _clip(module)
    tracker.assumed_scalar = 1.0
    without_state, middle, flops = tracker.live_bytes, len(tracker.timeline), tracker.flops
    num_ops_middle = tracker.num_ops
    optimizer.step()
    state_bytes = tracker.live_bytes - without_state
    second, num_ops_second = len(tracker.timeline), tracker.num_ops
    optimizer.step()
    tracker.assumed_scalar = None
    return _Step(
        timeline=[live + state_bytes for live in tracker.timeline[start:middle]] + tracker.timeline[second:],
        flops=flops,
        num_ops=num_ops_middle - num_ops_before + tracker.num_ops - num_ops_second,
    )


def _clip(module: nn.Module) -> None:
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    if not any(gradient.is_sparse for gradient in gradients):  # of which torch takes no norm
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)


def _loss(job: _Job, module: nn.Module, loss: Any, batch: tuple[Inputs, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = batch
    result = module(**inputs) if isinstance(inputs, Mapping) else module(inputs)
    output = select_output(result, job.output)
    return output, loss(output, targets)


def _tracker(device: torch.device, held: object) -> MemoryTracker:
    tracker = MemoryTracker(_CUDA_GRANULARITY if device.type == "cuda" else 1, max_seconds=MAX_SECONDS)
    tracker.hold(held)
    return tracker


def _tensors(*modules: object) -> list[torch.Tensor]:
    return [t for m in modules if isinstance(m, nn.Module) for t in (*m.parameters(), *m.buffers())]


def _prefer_foreach(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Choose as PyTorch does on a GPU, which steps all parameters at once unless told otherwise: that needs more memory."""
    for group in optimizer.param_groups if device.type == "cuda" else ():
        if group.get("foreach", False) is None and not group.get("fused"):
            group["foreach"] = True


def _repeated(tensor: torch.Tensor, size: int) -> torch.Tensor:
    if tensor.is_meta:
        return torch.zeros((size, *tensor.shape[1:]), dtype=tensor.dtype)
    return tensor.cpu().index_select(0, torch.arange(size) % len(tensor))


def _to_estimate(module: nn.Module, trace: _Trace) -> Estimate:
    eval_peak_bytes = max([trace.resident_bytes, *trace.eval_timeline])
    return Estimate(
        num_parameters=count_parameters(module),
        resident_bytes=trace.resident_bytes,
        peak_bytes=max([eval_peak_bytes, *trace.timeline]),
        flops_per_step=trace.flops,
        num_ops_per_step=trace.num_ops,
        eval_peak_bytes=eval_peak_bytes,
        eval_flops=trace.eval_flops,
    )


@contextlib.contextmanager
def _undisturbed(device: torch.device) -> Generator[None]:
    """Leave generators, gradient mode and warnings of this process as they were."""
    numpy: ModuleType | None = sys.modules.get("numpy")
    states = random.getstate(), None if numpy is None else numpy.random.get_state()
    has_fast_path = torch.backends.mha.get_fastpath_enabled()
    # The fused encoder layer of evaluation has no fake kernel; the plain one needs no less memory.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with preserved_random_state(device), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again in training, where their owner sees them
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(has_fast_path)
        random.setstate(states[0])
        if numpy is not None:
            numpy.random.set_state(states[1])
