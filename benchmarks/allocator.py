"""What PyTorch's own allocator hands out on the CPU while a model trains and is evaluated."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

from unified.components import select_output

Inputs = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocated:
    """Bytes of tensors that were alive, model, batch and optimizer included.

    Attributes:
        train_peak_bytes: The most during two training steps.
        eval_peak_bytes: The most during an evaluation batch after them.
        final_bytes: What was left in the end.
    """

    train_peak_bytes: int
    eval_peak_bytes: int
    final_bytes: int

    @property
    def peak_bytes(self) -> int:
        """The most at any time."""
        return max(self.train_peak_bytes, self.eval_peak_bytes)


def allocated(
    module: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer_factory: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    batch: tuple[Inputs, Tensor],
    *,
    output: str | int | None = None,
    autocast_dtype: torch.dtype | None = None,
) -> Allocated:
    """Take two training steps with ``module``, as the trainer does, then evaluate it, and return what that allocated."""
    inputs, targets = batch
    optimizer: torch.optim.Optimizer | None = None

    def forward() -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", dtype=autocast_dtype) if autocast_dtype else contextlib.nullcontext():
            result = module(**inputs) if isinstance(inputs, Mapping) else module(inputs)
            chosen = select_output(result, output)
            del result
            return chosen, loss(chosen, targets)

    def train() -> None:
        nonlocal optimizer
        optimizer = optimizer_factory(module.train().parameters())
        for _ in range(2):
            optimizer.zero_grad(set_to_none=True)
            _chosen, value = forward()  # the output is held until the step is over
            value.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()

    def evaluate() -> None:
        module.eval()
        with torch.no_grad():
            forward()

    held = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers(), *tree_leaves(inputs), targets))
    trained = bytes_over_time(train, held)
    evaluated = bytes_over_time(evaluate, trained[-1])
    return Allocated(train_peak_bytes=max(trained), eval_peak_bytes=max(evaluated), final_bytes=evaluated[-1])


def bytes_over_time(run: Callable[[], object], start: int = 0) -> list[int]:
    """Return the bytes that are alive after each allocation and release, beginning with ``start``."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return list(accumulate(changes, initial=start))
