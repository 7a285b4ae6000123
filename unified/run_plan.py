"""What a run would do, before it does it: frozen records for ``--dry-run``."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedJob:
    """One job of the plan.

    Attributes:
        order: Its place in the scheduler's order, from 1.
        threads: Intra-op threads it trains with for its whole life; None on a GPU.
        resident_bytes: Memory it holds while it waits between turns.
        peak_bytes: Most memory it needs during a step or an evaluation batch, ``resident_bytes`` included.
        flops_per_step: Floating-point operations of one step.
        predicted_seconds: Expected time in turns; None if nothing was measured.
        dataset_key: SHA-256 of its training data's content: equal keys are loaded once.
        dataset_source: The name that its owner gave the training data.
        why: What the scheduler says of it, which decides its place.
    """

    name: str
    user: str | None
    order: int
    threads: int | None
    num_parameters: int
    peak_bytes: int
    resident_bytes: int
    flops_per_step: int
    num_steps: int
    predicted_seconds: float | None
    dataset_key: str
    dataset_bytes: int
    dataset_source: str
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """Who would train where, and why.

    Attributes:
        jobs: The jobs in the scheduler's order.
        stages: The slot plan in words, one line a stage, such as ``"2 slots x 1 thread: a, b, c"``.
        reason: Why this plan.
        predicted_seconds: Expected makespan; None if nothing was measured.
        stacks: Names of jobs that would be tried as one: they are, if a probe finds that faster.
        shared: Dataset key to the names of the jobs that share it, for datasets with more than one.
    """

    jobs: tuple[PlannedJob, ...]
    stages: str
    reason: str
    predicted_seconds: float | None
    stacks: tuple[tuple[str, ...], ...] = ()
    shared: dict[str, tuple[str, ...]] = field(default_factory=dict)
