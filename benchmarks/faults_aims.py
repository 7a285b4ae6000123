"""What was aimed at under faults and load, and whether it was reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.checkpoint_cost import CostRun, cost_ratios
from benchmarks.neighbour import NeighbourLoss
from benchmarks.quantiles import Quantiles
from benchmarks.queue_latency import LIST, SUBMIT, Latencies
from benchmarks.storm_verdict import Loss, Verdict, quantiles_of

KILLS = 1000
NOTICED_SECONDS = 2.0
REDONE_INTERVALS = 1.0
RESTART_SECONDS = 15.0
SUBMIT_MS, LIST_MS = 50.0, 100.0
CHECKPOINT_RATIO = 1.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """A figure with the bound that it should keep.

    Attributes:
        claim: What is measured, in words.
        limit: The bound.
        measured: None if nothing could be measured.
        unit: Of both.
        is_least: Whether the bound is a lower one.
    """

    claim: str
    limit: float
    measured: float | None
    unit: str = ""
    is_least: bool = False

    @property
    def is_reached(self) -> bool:
        """Whether the bound is kept."""
        if self.measured is None:
            return False
        return self.measured >= self.limit if self.is_least else self.measured <= self.limit


def storm_aims(verdict: Verdict, losses: Sequence[Loss]) -> list[Aim]:
    """Return the aims that a storm tells of."""
    noticed = quantiles_of(losses, "noticed_seconds", "worker")
    redone = quantiles_of(losses, "redone_intervals")
    return [
        Aim(claim="SIGKILLs delivered", limit=KILLS, measured=sum(verdict.kills.values()), is_least=True),
        Aim(claim="jobs accepted and lost", limit=0, measured=len(verdict.lost)),
        Aim(claim="jobs published twice", limit=0, measured=len(verdict.doubled)),
        Aim(claim="jobs with wrong weights", limit=0, measured=len(verdict.wrong)),
        Aim(claim="illegal transitions", limit=0, measured=len(verdict.illegal)),
        Aim(claim="death of a worker noticed, slowest", limit=NOTICED_SECONDS, measured=_highest(noticed), unit="s"),
        Aim(
            claim="work redone per kill, most",
            limit=REDONE_INTERVALS,
            measured=_highest(redone),
            unit="checkpoint intervals",
        ),
    ]


def neighbour_aims(losses: Sequence[NeighbourLoss], interval_seconds: float) -> list[Aim]:
    """Return the aim for what a crash costs a neighbour."""
    worst = max((loss.seconds for loss in losses), default=None)
    limit = interval_seconds + RESTART_SECONDS
    return [Aim(claim="a neighbour's crash costs, most (one interval + 15 s)", limit=limit, measured=worst, unit="s")]


def latency_aims(latencies: Latencies) -> list[Aim]:
    """Return the aims for a full queue."""
    found = [(SUBMIT, SUBMIT_MS), (LIST, LIST_MS)]
    beside = f"with {latencies.queued} jobs queued"
    return [
        Aim(claim=f"{name} p99 {beside}", limit=limit, measured=_p99_ms(latencies.seconds[name]), unit="ms")
        for name, limit in found
    ]


def cost_aims(runs: Sequence[CostRun], interval_seconds: float) -> list[Aim]:
    """Return the aim for what checkpoints cost."""
    ratios = cost_ratios(runs)
    claim = f"run time with checkpoints every {interval_seconds:g} s over that without, median"
    return [Aim(claim=claim, limit=CHECKPOINT_RATIO, measured=median(ratios) if ratios else None, unit="x")]


def _highest(quantiles: Quantiles | None) -> float | None:
    return None if quantiles is None else quantiles.highest


def _p99_ms(seconds: Sequence[float]) -> float | None:
    quantiles = Quantiles.of(seconds)
    return None if quantiles is None else 1e3 * quantiles.p99
