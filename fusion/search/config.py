"""The settings of a search, and the presets that stand for the variants of the paper (GMorph, EuroSys'24, sections 3, 6.1)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from fusion.graph.errors import FusionError
from fusion.search.mutation import Sharing

POLICIES = ("guided", "annealing", "random", "exhaustive")
BASELINES = ("original", "all-shared", "tree", "random")
OP_TYPES = ("attention", "recurrent", "conv", "linear", "embedding", "norm", "other")  #: kinds of block
DEFAULT_CANDIDATES = 120


class Metric(StrEnum):
    """What a search makes small."""

    LATENCY = "latency"
    FLOPS = "flops"
    PARAMETERS = "parameters"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What to look for, how, and for how long.

    Attributes:
        thresholds: Score drops that are allowed, each >= 0; one search serves them all.
        metric: What is made small.
        policy: Who proposes candidates: ``guided``, ``annealing``, ``random`` or ``exhaustive``; or a baseline: ``original``,
            ``all-shared``, ``tree``.
        sharing: Which inputs may be shared: those of ``exact`` shape, with one equal dimension (``partial``), or ``any``.
        barred: Kinds of block that are never shared, such as ``attention``.
        budget_seconds: Wall time after which no further step of training begins, or None.
        max_candidates: Number of candidates after which the search ends, or None.
        stall: Ends a search whose front has not changed for so many candidates, or None.
        seed: All draws come from it.
        epochs: Passes over the training part that a candidate gets at most.
        check_epochs: Passes between two looks at the validation part, after those of ``rungs``.
        rungs: Passes after which the candidates of one proposal are first compared; empty without successive halving.
        batch_size: Samples per training step.
        lr: Learning rate of Adam; None takes the smallest rate that the models were trained with, or 1e-3.
        adapter_lr_factor: The rate of new adapters over ``lr``.
        cohort: How many candidates are trained side by side.
        screen: How many are proposed and looked at before the most promising ``cohort`` of them are trained, if there are
            ``rungs``.
        num_pairs: Mutations of one pass of the annealing and the random policy; None draws from 1 to the number of tasks.
        latency_batch: Samples per forward pass whose latency is measured.
        adapter_start: ``least-squares`` or ``random``.
        stitches: Put an adapter between features of equal shape too, where the block that takes it cannot be realigned.
        rest_epochs: Passes in which blocks that are given what they were given before rest, and what they give is read from a
            store; after them everything is trained.
        loss: ``soft`` compares classifiers' answers as probabilities, ``l1`` everything as numbers.
        is_still: Train in evaluation mode: BatchNorm's statistics stay as they were taken after the mutation, nothing is
            dropped out; what is trained is what is judged.
        lr_factor: Learning rate of blocks over ``lr``: they come trained.
        averages: Judge and keep the running average of the weights, not the last step's.
        early_termination: End a candidate that is predicted to miss every threshold (section 5.1).
        rule_filter: Skip what shares more than a candidate that failed (section 5.1).
        unknown_fails: Count a candidate that was ended early as failed, as the public code does.
        fifo_elites: The oldest elite leaves, not the worst.
        margin: Standard errors of the validation drop that acceptance keeps as a distance.
        label_free: Score agreement with the teachers even where there are labels.
        audit: Train what the filters reject too, and count how often they were wrong.
        measure_seconds: Time that measuring the cost of blocks and of finalists may take, each.
        out: Folder of the history, or None to keep it in a temporary one.
        resume: Go on with the history in ``out``.
    """

    thresholds: tuple[float, ...] = (0.01,)
    metric: Metric = Metric.LATENCY
    policy: str = "guided"
    sharing: Sharing = Sharing.PARTIAL
    barred: frozenset[str] = frozenset()
    budget_seconds: float | None = None
    max_candidates: int | None = None
    stall: int | None = None
    seed: int = 0
    epochs: int = 8
    check_epochs: int = 2
    rungs: tuple[int, ...] = (1, 2, 4)
    batch_size: int = 64
    lr: float | None = None
    adapter_lr_factor: float = 1.0
    cohort: int = 3
    screen: int = 12
    num_pairs: int | None = None
    latency_batch: int = 1
    adapter_start: str = "least-squares"
    stitches: bool = True
    rest_epochs: int = 0
    loss: str = "soft"
    is_still: bool = True
    lr_factor: float = 0.25
    averages: bool = True
    early_termination: bool = True
    rule_filter: bool = False
    unknown_fails: bool = False
    fifo_elites: bool = False
    margin: float = 1.0
    label_free: bool = False
    audit: bool = False
    measure_seconds: float = 5.0
    out: Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        problems = [*_problems(self)]
        if problems:
            raise FusionError(f"the settings of the search: {'; '.join(problems)}")

    @property
    def candidates(self) -> float:
        """How many candidates are looked at, infinite where only time counts."""
        if self.max_candidates is not None:
            return self.max_candidates
        return math.inf if self.budget_seconds is not None else DEFAULT_CANDIDATES

    @property
    def checks(self) -> tuple[int, ...]:
        """Passes after which a candidate is looked at, ascending; the last one is ``epochs``."""
        first = [epoch for epoch in self.rungs if epoch < self.epochs]
        begin = first[-1] if first else 0
        return (*first, *range(begin + self.check_epochs, self.epochs, self.check_epochs), self.epochs)

    def identity(self) -> dict[str, Any]:
        """Return what a history must have been made with to be gone on with: all but budgets and folders."""
        free = {"budget_seconds", "max_candidates", "stall", "out", "resume", "measure_seconds"}
        values = {key: value for key, value in asdict(self).items() if key not in free}
        return values | {"barred": sorted(self.barred), "thresholds": list(self.thresholds), "rungs": list(self.rungs)}


def _problems(config: Config) -> list[str]:
    """Return everything that is wrong with the settings."""
    found: list[str] = []
    thresholds = config.thresholds if isinstance(config.thresholds, tuple | list) else ()
    if not thresholds or any(not 0 <= value < 1 for value in thresholds):
        found.append(f"thresholds are drops from 0 up to 1, such as (0.01,) for one in a hundred; got {config.thresholds}")
    choices = {
        "metric": [*Metric],
        "sharing": [*Sharing],
        "policy": [*dict.fromkeys(POLICIES + BASELINES)],
        "adapter_start": ["least-squares", "random"],
        "loss": ["soft", "l1"],
    }
    for name, values in choices.items():
        if getattr(config, name) not in values:
            found.append(f"{name} is one of {', '.join(values)}; got {getattr(config, name)!r}")
    unknown = sorted(set(config.barred) - set(OP_TYPES))
    if unknown:
        found.append(f"barred are kinds of block, of {', '.join(OP_TYPES)}; got {', '.join(unknown)}")
    if list(config.rungs) != sorted(set(config.rungs)) or any(rung < 1 for rung in config.rungs):
        found.append(f"rungs are ascending numbers of epochs from 1; got {config.rungs}")
    if config.resume and config.out is None:
        found.append("resume needs the folder of the earlier search in out")
    return found + _out_of_range(config)


def _out_of_range(config: Config) -> list[str]:
    """Return what is wrong with numbers."""
    found: list[str] = []
    for name in ("epochs", "check_epochs", "batch_size", "cohort", "screen", "latency_batch"):
        if not getattr(config, name) >= 1:
            found.append(f"{name} is at least 1; got {getattr(config, name)}")
    for name in (
        "budget_seconds",
        "max_candidates",
        "stall",
        "lr",
        "num_pairs",
        "adapter_lr_factor",
        "lr_factor",
        "measure_seconds",
    ):
        value = getattr(config, name)
        if value is not None and not value > 0:
            found.append(f"{name} is positive; got {value}")
    if not config.margin >= 0:
        found.append(f"margin is at least 0, or drops beyond their limit would be accepted; got {config.margin}")
    return found


_PAPER: dict[str, Any] = {
    "policy": "annealing",
    "rungs": (),
    "cohort": 1,
    "num_pairs": 2,
    "adapter_start": "random",
    "stitches": False,
    "adapter_lr_factor": 1.0,
    "rest_epochs": 0,
    "loss": "l1",
    "is_still": False,
    "lr_factor": 1.0,
    "averages": False,
    "early_termination": False,
    "rule_filter": False,
    "fifo_elites": True,
}

#: Name -> settings that differ from the defaults. ``paper`` is GMorph with corrected formulas; ``-p`` adds predictive early
#: termination, ``-pr`` the rule-based filter too (section 6.1, F29 of our feature table).
PRESETS: dict[str, dict[str, Any]] = {
    "full": {},
    "paper": _PAPER,
    "paper-p": _PAPER | {"early_termination": True},
    "paper-pr": _PAPER | {"early_termination": True, "rule_filter": True, "unknown_fails": True},
}


def preset(name: str, **settings: Any) -> Config:
    """Return the settings of a preset, some of them replaced.

    Raises:
        FusionError: For an unknown name, an unknown setting or a bad value.

    Example:
        >>> preset("paper-pr", epochs=20).policy
        'annealing'
    """
    if name not in PRESETS:
        raise FusionError(f"expected a preset of {', '.join(PRESETS)}; got {name!r}")
    unknown = settings.keys() - {entry.name for entry in fields(Config)}
    if unknown:
        raise FusionError(f"a search has no settings {sorted(unknown)}; see fusion.search.config.Config")
    return replace(Config(**PRESETS[name]), **settings)
