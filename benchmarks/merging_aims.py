"""The targets M1 to M8 of the design, judged by what was found; each becomes one printed line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.fusion_coverage_targets import Target

OURS, ALONE, ZIPPED, ORIGINAL = "PAM", "B1", "B2", "original"
Run = Mapping[str, Any]


def aims(runs: Sequence[Run], estimator: Mapping[str, float] | None) -> list[Target]:
    """Return every target, in order."""
    lenet = [run for run in runs if run["network"] == "lenet5" and run["tasks"] == "two"]
    return [
        *_estimator(estimator),
        *_groups(lenet),
        *_table("M4", [run for run in lenet if run["method"] == "taylor"], accuracy=1.0),
        *_subsets(lenet),
        *_three([run for run in runs if run["tasks"] == "three"]),
        Target(id="M7", measure="gpu_layer_seconds", value=None, op="<=", bound=60),
        Target(id="M8", measure="gpu_flops_ratio_b1_AB", value=None, op="<=", bound=0.70),
    ]


def _estimator(found: Mapping[str, float] | None) -> Iterator[Target]:
    bounds = (
        ("M1", "max_abs_difference", "<=", 1e-5), ("M1", "same_order", "=", 1), ("M1", "speedup", ">=", 20),
        ("M2", "planted_recovered_share", ">=", 0.9), ("M2", "values_without_null", "=", 0),
    )  # fmt: skip
    for name, measure, op, bound in bounds:
        yield Target(id=name, measure=measure, value=None if found is None else found[measure], op=op, bound=bound)


def _groups(runs: Sequence[Run]) -> Iterator[Target]:
    worst = max((run["groups"]["large_alpha_difference"] for run in runs), default=None)
    yield Target(id="M3", measure="large_alpha_difference", value=worst, op="<=", bound=1e-5)
    for layer in ("fc1", "fc2"):
        shares = [
            share for run in runs for share in run["groups"]["own_share_minus_chance"][layer].values() if share is not None
        ]
        least = min(shares, default=None)
        yield Target(id="M3", measure=f"own_share_minus_chance_{layer}", value=least, op=">=", bound=0.0)


def _table(name: str, runs: Sequence[Run], *, accuracy: float) -> Iterator[Target]:
    """The means over the seeds of what Table 1 has."""
    yield Target(id=name, measure="accuracy_drop_max", value=_mean(map(accuracy_drop, runs)), op="<=", bound=accuracy)
    for tasks, bound in (("A", 1.10), ("B", 1.10), ("A+B", 0.85)):
        ratios = [flops_of(run, OURS, tasks) / flops_of(run, ALONE, tasks) for run in runs]
        yield Target(id=name, measure=f"flops_ratio_b1_{tasks}", value=_mean(ratios), op="<=", bound=bound)
    for scheme, bound in ((ALONE, 1.05), (ZIPPED, 1.2)):
        found = [run["report"]["gains"][scheme]["average"] for run in runs]
        yield Target(id=name, measure=f"average_gain_{scheme.lower()}", value=_mean(found), op=">=", bound=bound)
    seconds = max((run["merge_seconds"] for run in runs), default=None)
    yield Target(id=name, measure="seconds", value=seconds, op="<=", bound=600)


def _subsets(runs: Sequence[Run]) -> Iterator[Target]:
    worst = max((run["checks"]["max_difference"] for run in runs), default=None)
    yield Target(id="M5", measure="specialised_max_difference", value=worst, op="<=", bound=1e-5)
    ratios = [
        latency_of(run, OURS, task) / latency_of(run, ALONE, task) for run in runs for task in run["report"]["tasks"]
    ]  # fmt: skip
    yield Target(id="M5", measure="latency_ratio", value=_mean(ratios), op="<=", bound=1.1)


def _three(runs: Sequence[Run]) -> Iterator[Target]:
    for measure, bound in (("subsets_equal", 7), ("flops_monotone", 1)):
        least = min((run["checks"][measure] for run in runs), default=None)
        yield Target(id="M6", measure=measure, value=least, op="=", bound=bound)


def accuracy_drop(run: Run) -> float:
    """Return the points of held-out accuracy that the task that loses most has lost."""
    schemes = run["report"]["schemes"]
    return max(100 * (schemes[ORIGINAL]["scores"][task] - schemes[OURS]["scores"][task]) for task in run["report"]["tasks"])


def combination(run: Run, scheme: str, tasks: str) -> Mapping[str, Any]:
    """Return what a scheme comes to for tasks such as ``A+B``."""
    return next(each for each in run["report"]["schemes"][scheme]["combinations"] if "+".join(each["tasks"]) == tasks)


def flops_of(run: Run, scheme: str, tasks: str) -> float:
    """Return the operations of a scheme for some tasks."""
    return combination(run, scheme, tasks)["flops"]


def latency_of(run: Run, scheme: str, tasks: str) -> float:
    """Return the median seconds of a forward pass of a scheme for some tasks."""
    return combination(run, scheme, tasks)["latency"]["median_seconds"]


def _mean(values: Any) -> float | None:
    found = list(values)
    return fmean(found) if found else None
