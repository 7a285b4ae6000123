"""How many CPU threads a fusion trains and measures with: as many as are fastest here and now, and on resuming those it had.

A second thread does not always help: two of them on a busy 2-core machine were seen to need 0.9 s for a step that one does in
5 ms, for each waits at the other's barriers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unified.cores import use_threads
from unified.dataset_problems import Inputs
from unified.fusing.rows import map_inputs

MAX_SECONDS = 0.5  #: for the runs with one number of threads; one that is under way is waited for
NUM_RUNS = 3
TIE = 0.05  #: more threads must save more than this share of the time


def choose_threads(
    models: Sequence[nn.Module],
    inputs: Inputs,
    batch_size: int,
    *,
    most: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    use: Callable[[int], None] = lambda count: use_threads(count, first_core=0),
) -> int:
    """Measure a forward and a backward pass of the models with 1, 2, 4, … threads and use the fastest number from now on.

    Models, their gradients and random numbers are left as they were.

    Args:
        models: On the CPU.
        inputs: Some of their samples, at least one; repeated if there are less than ``batch_size``.
        batch_size: Samples of a training step, > 0.
        most: Up to how many threads; by default PyTorch's present number.
        clock: In seconds.
        use: Makes this process use a number of threads.

    Returns:
        The number, the smallest of those that are within 5 % of the fastest.
    """
    most = most or torch.get_num_threads()
    batch = _repeated(inputs, batch_size)
    seconds: dict[int, float] = {}
    with _evaluating(models), torch.random.fork_rng(devices=[]):
        for count in _counts(most):
            use(count)
            try:
                seconds[count] = _measured(lambda: _pass(models, batch), clock)
            except Exception:  # noqa: BLE001 - the search checks the models and says better what is wrong with them
                break
            if seconds[count] > min(seconds.values()):
                break
    best = min(seconds.values(), default=0.0)
    chosen = next((count for count, value in seconds.items() if value <= best * (1 + TIE)), 1)
    use(chosen)
    return chosen


def recorded_threads(search: Path) -> int | None:
    """Return with how many threads an earlier search in a folder measured its costs, None if it did not get that far."""
    try:
        number = json.loads((search / "table.json").read_bytes())["conditions"]["num_threads"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return number if isinstance(number, int) and number > 0 else None


@contextmanager
def threads_kept() -> Iterator[None]:
    """Give the process back the number of threads that it has now, on any core."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            use_threads(before)


def _counts(most: int) -> list[int]:
    """Return 1, 2, 4, … and ``most``."""
    return [1 << power for power in range((most - 1).bit_length())] + [most]


def _measured(run: Callable[[], None], clock: Callable[[], float]) -> float:
    """Return the best of some runs after one to warm up; where that alone takes too long, its time."""
    begin = clock()
    run()
    last = clock()
    if last - begin > MAX_SECONDS:
        return last - begin
    best = float("inf")
    for _ in range(NUM_RUNS):
        started = clock()
        run()
        last = clock()
        best = min(best, last - started)
        if last - begin > MAX_SECONDS:
            break
    return best


def _pass(models: Sequence[nn.Module], inputs: Inputs) -> None:
    with torch.enable_grad():
        for model in models:
            output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
            total = sum((tensor.sum() for tensor in _tensors(output) if tensor.requires_grad), start=torch.zeros(()))
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            if parameters and total.requires_grad:
                torch.autograd.grad(total, parameters, allow_unused=True)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
        return
    parts = output.values() if hasattr(output, "values") else output if isinstance(output, tuple | list) else ()
    for item in parts:
        yield from _tensors(item)


def _repeated(inputs: Inputs, batch_size: int) -> Inputs:
    return map_inputs(inputs, lambda tensor: tensor[torch.arange(batch_size) % len(tensor)])


@contextmanager
def _evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    """Set evaluation mode, in which no buffer moves, and give each its own mode back."""
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            if mode:
                model.train()
