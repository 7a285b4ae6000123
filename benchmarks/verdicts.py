"""What the runs say: ratios of unified to the baselines, paired within each repeat, and whether the targets are reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.modes import (
    AUTO,
    MODES,
    ONE_SLOT,
    PROCESSES_1,
    PROCESSES_DEFAULT,
    SEQUENTIAL_1,
    SEQUENTIAL_ALL,
    Kind,
)
from benchmarks.records import RunRecord

FIGURES = (
    "makespan",
    "span",
    "mean_completion",
    "p95_completion",
    "startup",
    "steps_per_second",
    "peak_bytes",
)
BASELINES = (SEQUENTIAL_1.name, SEQUENTIAL_ALL.name, PROCESSES_1.name, PROCESSES_DEFAULT.name)
N_PROCESSES = (PROCESSES_1.name, PROCESSES_DEFAULT.name)
DEFAULT, ANY_SCHEDULER = AUTO[0].name, tuple(mode.name for mode in AUTO)

MAX_ONE_SLOT = 1.02
AIMED_MAKESPAN = {"vision": 0.88, "language": 0.84, "small": 1.0}
MAX_COMPLETION = 0.67
MAX_MEMORY = 0.47
MAX_RESIDENT_MIB = 32.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A figure over the repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        return cls(median=median(values), low=min(values), high=max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A figure of a unified mode over the same figure of a baseline in the same repeat."""

    mix: str
    figure: str
    mode: str
    baseline: str
    spread: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A figure with the bound that it should not pass.

    Attributes:
        claim: What is compared, in words.
        mix: On which mix, or ``"all"``.
        mode: The mode that the figure is of.
        spread: The figure; a ratio unless ``unit`` says otherwise.
        limit: Reached if the median is at most this.
        unit: ``"x"`` for ratios.
    """

    claim: str
    mix: str
    mode: str
    spread: Spread
    limit: float
    unit: str = "x"

    @property
    def is_reached(self) -> bool:
        """Whether the median keeps the bound."""
        return self.spread.median <= self.limit


def values(records: Sequence[RunRecord], mix: str, mode: str, figure: str) -> dict[int, float]:
    """Return a figure of one mode on one mix by repeat."""
    return {record.repeat: getattr(record, figure) for record in records if record.mix == mix and record.mode == mode}


def paired(records: Sequence[RunRecord], mix: str, figure: str, *, mode: str, baselines: Sequence[str]) -> list[float]:
    """Return, per repeat, the figure of ``mode`` over the lowest among the ``baselines`` that were run, if any."""
    mine = values(records, mix, mode, figure)
    theirs = [found for baseline in baselines if (found := values(records, mix, baseline, figure))]
    if not theirs:
        return []
    return [value / min(each[repeat] for each in theirs) for repeat, value in mine.items()]


def ratios(records: Sequence[RunRecord]) -> list[Ratio]:
    """Return every unified mode against every baseline, in every figure, on every mix that was run."""
    return [
        Ratio(mix=mix, figure=figure, mode=mode.name, baseline=baseline, spread=Spread.of(found))
        for mix in mixes(records)
        for figure in FIGURES
        for mode in MODES
        if mode.kind is Kind.UNIFIED
        for baseline in BASELINES
        if (found := paired(records, mix, figure, mode=mode.name, baselines=[baseline]))
    ]


def mixes(records: Sequence[RunRecord]) -> list[str]:
    """Return the mixes in the order in which they were run."""
    return list(dict.fromkeys(record.mix for record in records))


def targets(records: Sequence[RunRecord], resident_mib: Sequence[float]) -> list[Target]:
    """Return the targets that the runs can tell of.

    Args:
        records: All runs.
        resident_mib: Per repeat, the MiB of each further resident job beyond its own tensors and data.
    """
    found = [target for mix in mixes(records) for target in _targets_of_mix(records, mix)]
    if resident_mib:
        claim = "each further resident job, beyond its own tensors and data"
        spread = Spread.of(resident_mib)
        found.append(Target(claim=claim, mix="resident", mode="unified", spread=spread, limit=MAX_RESIDENT_MIB, unit="MiB"))
    return found


def _targets_of_mix(records: Sequence[RunRecord], mix: str) -> Iterator[Target]:
    def target(
        claim: str,
        figure: str,
        modes: Sequence[str],
        baselines: Sequence[str],
        limit: float,
        pick: Pick = min,
    ) -> Iterator[Target]:
        """Yield the target for the mode that ``pick`` chooses by its median."""
        found = {mode: paired(records, mix, figure, mode=mode, baselines=baselines) for mode in modes}
        spreads = {mode: Spread.of(ratios) for mode, ratios in found.items() if ratios}
        if spreads:
            mode = pick(spreads, key=lambda name: spreads[name].median)
            yield Target(claim=claim, mix=mix, mode=mode, spread=spreads[mode], limit=limit)

    one, against = "makespan over sequential, 1 thread", "over the better N processes"
    yield from target(one, "makespan", [ONE_SLOT.name], [SEQUENTIAL_1.name], MAX_ONE_SLOT)
    yield from target(f"makespan {against}", "makespan", [DEFAULT], N_PROCESSES, 1.0)
    best = f"makespan {against}, best scheduler"
    yield from target(best, "makespan", ANY_SCHEDULER, N_PROCESSES, AIMED_MAKESPAN[mix])
    completion = f"mean completion {against}, best scheduler"
    yield from target(completion, "mean_completion", ANY_SCHEDULER, N_PROCESSES, MAX_COMPLETION)
    if mix == "small":
        memory = "peak memory over the lower N processes, worst scheduler"
        yield from target(memory, "peak_bytes", ANY_SCHEDULER, N_PROCESSES, MAX_MEMORY, pick=max)


Pick = Callable[..., str]
