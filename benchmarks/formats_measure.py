"""What the formats benchmark measures of one model; runs in a process of its own."""

from __future__ import annotations

import copy
import inspect
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import unified
from benchmarks.allocator import allocated
from benchmarks.formats_models import entries, family_of
from benchmarks.formats_tables import Row
from benchmarks.fusion_zoo import Values, ZooModel, call
from unified.components import select_output
from unified.errors import ExportError
from unified.memory import estimate

BATCH_SIZE = 8
NUM_STEPS = 5
NUM_LOADS = 5
MIN_ROUNDS = 5
ROUND_SECONDS = 0.02  #: shorter steps are taken several at a time
LEARNING_RATE = 1e-3


def measure(name: str, *, threads: int, seconds: float) -> Row:
    """Export, load and train one model, and compare it with its eager self; what goes wrong stands in the row."""
    torch.set_num_threads(threads)
    entry = entries()[name]
    row = Row(name=name, family=family_of(name), library=entry.family, inputs=_shapes(entry.inputs(BATCH_SIZE)))
    if not entry.is_available:
        return replace(row, outcome="not installed", reason=f"needs {entry.family}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _measured(row, entry, Path(folder) / "model.umodel", seconds)
    except ExportError as error:
        return replace(row, outcome="refused", reason=without_folders(str(error)))
    except Exception as error:  # noqa: BLE001 - one model's failure is a row of the table
        return replace(row, outcome="failed", reason=without_folders(f"{type(error).__name__}: {error}"))


def without_folders(text: str) -> str:
    """Return a message without the folders of this machine.

    >>> without_folders("see /home/me/models.py:3 in forward")
    'see …/models.py:3 in forward'
    """
    return re.sub(r"(?<![\w.])(/[^\s/'\"]+)+/", "…/", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a model is trained on: one batch, and which of its outputs goes to the loss."""

    inputs: Tensor | dict[str, Tensor]
    targets: Tensor
    output: str | int | None

    def loss(self, model: nn.Module) -> Tensor:
        """Return the loss of a model's answer."""
        return nn.functional.mse_loss(select_output(call(model, self.inputs), self.output), self.targets)


def _measured(row: Row, entry: ZooModel, path: Path, seconds: float) -> Row:
    eager = entry.build()
    started = time.perf_counter()
    unified.export(eager, entry.inputs(2), path)
    export_seconds = time.perf_counter() - started
    load_seconds = [_load_seconds(path) for _ in range(NUM_LOADS)]
    loaded: nn.Module = unified.load_umodel(path)
    task = task_of(entry, eager)
    row = replace(
        row,
        num_parameters=sum(parameter.numel() for parameter in eager.parameters()),
        archive_bytes=path.stat().st_size,
        export_seconds=export_seconds,
        load_ms=[1e3 * each for each in load_seconds],
    )
    row = _with_memory(row, copy.deepcopy(loaded), task)
    largest, same_losses, same_answers = compare(eager, loaded, task)
    eager_ms, loaded_ms = _step_times(eager, loaded, task, seconds)
    return replace(
        row,
        outcome="accepted",
        max_difference=largest,
        is_identical=largest == 0 and same_losses and same_answers,
        eager_ms=eager_ms,
        loaded_ms=loaded_ms,
    )


def _load_seconds(path: Path) -> float:
    started = time.perf_counter()
    unified.load_umodel(path)
    return time.perf_counter() - started


def task_of(entry: ZooModel, model: nn.Module) -> Task:
    """Return what the model is trained on: its inputs, and random targets of the shape of its answer."""
    inputs = _by_name(entry.inputs(BATCH_SIZE), model)
    with torch.no_grad():
        result = call(model.eval(), inputs)
    which = _which(result)
    generator = torch.Generator().manual_seed(1)
    shape = select_output(result, which).shape
    return Task(inputs=inputs, targets=torch.randn(shape, generator=generator), output=which)


def _which(result: object) -> str | int | None:
    """Return what a job would name as the output of such a model: the first tensor of one without ``logits``."""
    if isinstance(result, Mapping) and "logits" not in result:
        return next(key for key, value in result.items() if isinstance(value, Tensor))
    return None


def compare(eager: nn.Module, loaded: nn.Module, task: Task) -> tuple[float, bool, bool]:
    """Train both with the same random numbers; return the largest difference of a weight, and whether the rest is equal."""
    losses = [_trained(model, task) for model in (eager, loaded)]
    other = loaded.state_dict()
    differences = [(tensor.double() - other[name].double()).abs().max() for name, tensor in eager.state_dict().items()]
    with torch.no_grad():
        answers = [select_output(call(model.eval(), task.inputs), task.output) for model in (eager, loaded)]
    return float(max(differences)), losses[0] == losses[1], torch.equal(*answers)


def _trained(model: nn.Module, task: Task) -> list[float]:
    torch.manual_seed(3)
    step = _stepper(model, task)
    return [float(step().detach()) for _ in range(NUM_STEPS)]


def _stepper(model: nn.Module, task: Task) -> Callable[[], Tensor]:
    optimizer = torch.optim.Adam(model.train().parameters(), lr=LEARNING_RATE)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = task.loss(model)
        loss.backward()
        optimizer.step()
        return loss

    return step


def _step_times(eager: nn.Module, loaded: nn.Module, task: Task, seconds: float) -> tuple[list[float], list[float]]:
    """Return milliseconds of a step, round by round; who goes first changes with each round."""
    steps = [_stepper(model, task) for model in (eager, loaded)]
    count = 1
    for step in steps:
        step()
        count = max(1, round(ROUND_SECONDS / _seconds(step, 1)))
    found: list[list[float]] = [[], []]
    began = time.perf_counter()
    while len(found[0]) < MIN_ROUNDS or time.perf_counter() - began < seconds:
        for who in (0, 1) if len(found[0]) % 2 else (1, 0):
            found[who].append(1e3 * _seconds(steps[who], count))
    return found[0], found[1]


def _seconds(step: Callable[[], Tensor], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - started) / count


def _with_memory(row: Row, model: nn.Module, task: Task) -> Row:
    """Compare the estimate with the allocator's record of two steps, and of an evaluation after them."""
    found = estimate(
        model,
        nn.MSELoss(),
        torch.optim.Adam,
        tree_map(lambda tensor: tensor[:2], (task.inputs, task.targets)),
        batch_size=BATCH_SIZE,
        output=task.output,
    )
    true = allocated(model, nn.MSELoss(), torch.optim.Adam, (task.inputs, task.targets), output=task.output)
    return replace(
        row,
        estimated_peak_bytes=found.peak_bytes,
        measured_peak_bytes=true.peak_bytes,
        estimated_eval_bytes=found.eval_peak_bytes,
        measured_eval_bytes=true.eval_peak_bytes,
        flops=found.flops_per_step,
        eval_flops=found.eval_flops,
    )


def _tensors(values: Values) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return list(values.values() if isinstance(values, Mapping) else values)


def _by_name(values: Values, model: nn.Module) -> Tensor | dict[str, Tensor]:
    """Return inputs as a job's dataset holds them: one tensor, or several by name."""
    if isinstance(values, tuple):
        return dict(zip(inspect.signature(model.forward).parameters, values, strict=False))
    return values if isinstance(values, Tensor) else dict(values)


def _shapes(values: Values) -> str:
    return ", ".join("x".join(map(str, tensor.shape)) for tensor in _tensors(values))
