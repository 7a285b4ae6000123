"""The figures of the formats benchmark: a row for each model, aims, and tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was found of one model; None where it was not measured.

    Attributes:
        name: The model.
        family: Its family in the table.
        library: Where it is from.
        inputs: Shapes of the inputs it is trained with, batch first.
        outcome: ``accepted``, ``refused`` (by the export), ``failed`` (anything else), or ``not installed``.
        reason: Why it was not accepted.
        num_parameters: Of the eager model, each tied one counted once.
        archive_bytes: Size of the file.
        export_seconds: Of ``unified.export``, which traces, stores and compares; the exporter is imported before.
        load_ms: Of each ``unified.load_umodel``.
        max_difference: Largest difference of a weight or buffer after five training steps.
        is_identical: Whether weights, losses and answers in evaluation are all equal bit for bit.
        eager_ms: Milliseconds of a training step of the eager model, by round.
        loaded_ms: The same of the loaded model, in the same rounds.
        estimated_peak_bytes: Estimate of the highest memory of training and evaluation.
        measured_peak_bytes: That of the allocator.
        estimated_eval_bytes: Estimate for evaluation alone.
        measured_eval_bytes: That of the allocator.
        flops: Floating-point operations of a training step.
        eval_flops: Those of an evaluation batch.
    """

    name: str
    family: str
    library: str
    inputs: str
    outcome: str = "failed"
    reason: str = ""
    num_parameters: int | None = None
    archive_bytes: int | None = None
    export_seconds: float | None = None
    load_ms: list[float] = field(default_factory=list)
    max_difference: float | None = None
    is_identical: bool | None = None
    eager_ms: list[float] = field(default_factory=list)
    loaded_ms: list[float] = field(default_factory=list)
    estimated_peak_bytes: int | None = None
    measured_peak_bytes: int | None = None
    estimated_eval_bytes: int | None = None
    measured_eval_bytes: int | None = None
    flops: int | None = None
    eval_flops: int | None = None

    @property
    def step_ratio(self) -> tuple[float, float, float] | None:
        """Return how long a step of the loaded model takes against the eager one's: median and quartiles over the rounds."""
        if not self.eager_ms:
            return None
        ratios = [mine / plain for mine, plain in zip(self.loaded_ms, self.eager_ms, strict=True)]
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        return float(middle), float(low), float(high)

    @property
    def peak_ratio(self) -> float | None:
        """Return the estimate over the truth."""
        return _over(self.estimated_peak_bytes, self.measured_peak_bytes)

    @property
    def eval_ratio(self) -> float | None:
        """Return the same for evaluation alone."""
        return _over(self.estimated_eval_bytes, self.measured_eval_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """An aim and what was found; ``value`` None where it was not measured."""

    text: str
    bound: float
    is_lower_bound: bool
    value: float | None

    @property
    def verdict(self) -> str:
        """Say whether it was reached."""
        if self.value is None:
            return "not measured"
        reached = self.value >= self.bound if self.is_lower_bound else self.value <= self.bound
        return "reached" if reached else "not reached"


def aims_of(rows: Sequence[Row]) -> list[Aim]:
    """Return the aims and what the rows say of them."""
    accepted = [row for row in rows if row.outcome == "accepted"]
    ratios = [row.step_ratio[0] for row in accepted if row.step_ratio]
    resnet = next((row for row in accepted if row.name == "resnet18"), None)
    recurrent = [row.peak_ratio for row in accepted if row.family in {"LSTM", "GRU, RNN"} and row.peak_ratio]

    def at_most(text: str, bound: float, value: float | None) -> Aim:
        return Aim(text=text, bound=bound, is_lower_bound=False, value=value)

    def at_least(text: str, bound: float, value: float | None) -> Aim:
        return Aim(text=text, bound=bound, is_lower_bound=True, value=value)

    return [
        at_least("models accepted and bit-identical", 40, sum(bool(row.is_identical) for row in rows)),
        at_most("models accepted and not bit-identical", 0, sum(not row.is_identical for row in accepted)),
        at_most("load of ResNet-18, ms", 300, median(resnet.load_ms) if resnet else None),
        at_most("step against eager, median over the models", 1.05, median(ratios) if ratios else None),
        at_most("peak estimate, 95th percentile of its error", 0.1, _p95(accepted, lambda row: row.peak_ratio)),
        at_most("evaluation estimate, 95th percentile of its error", 0.1, _p95(accepted, lambda row: row.eval_ratio)),
        at_least("estimate of recurrent models, lowest share of the truth", 0.9, min(recurrent, default=None)),
    ]


def _p95(rows: Sequence[Row], ratio: Callable[[Row], float | None]) -> float | None:
    errors = [abs(found - 1) for row in rows if (found := ratio(row)) is not None]
    return float(np.percentile(errors, 95)) if errors else None


def _over(one: int | None, other: int | None) -> float | None:
    return None if one is None or not other else one / other


HEADS = (
    "family",
    "model",
    "inputs",
    "parameters",
    "MiB",
    "export s",
    "load ms",
    "step / eager",
    "difference",
    "peak est.",
    "eval",
)


def print_tables(rows: Sequence[Row], aims: Sequence[Aim], console: Console) -> None:
    """Print the models, those that were not accepted with the reason, and the aims."""
    table = Table(title="estimates are shares of what the allocator handed out; step: median (quartiles) over rounds")
    for head in HEADS:
        table.add_column(head, justify="left" if head in HEADS[:3] else "right")
    for row in rows:
        if row.outcome == "accepted":
            table.add_row(*_cells(row))
    console.print(table)
    for row in rows:
        if row.outcome != "accepted":
            console.print(f"{row.name} ({row.family}): {row.outcome}: {row.reason}", markup=False, highlight=False)
    table = Table(title="aims")
    for head in ("aim", "bound", "found", ""):
        table.add_column(head)
    for aim in aims:
        value = "-" if aim.value is None else f"{aim.value:.3g}"
        table.add_row(aim.text, f"{'>=' if aim.is_lower_bound else '<='} {aim.bound:g}", value, aim.verdict)
    console.print(table)


def _cells(row: Row) -> list[str]:
    step = row.step_ratio
    return [
        row.family,
        row.name,
        row.inputs,
        _or_dash(row.num_parameters, lambda value: f"{value / 1e6:.2f} M"),
        _or_dash(row.archive_bytes, lambda value: f"{value / MIB:.1f}"),
        _or_dash(row.export_seconds, lambda value: f"{value:.1f}"),
        f"{median(row.load_ms):.0f}" if row.load_ms else "-",
        f"{step[0]:.2f} ({step[1]:.2f}-{step[2]:.2f})" if step else "-",
        "identical" if row.is_identical else _or_dash(row.max_difference, lambda value: f"{value:.1e}"),
        _or_dash(row.peak_ratio, lambda value: f"{value:.2f}"),
        _or_dash(row.eval_ratio, lambda value: f"{value:.2f}"),
    ]


def _or_dash(value: float | None, write: Callable[[float], str]) -> str:
    return "-" if value is None else write(value)
