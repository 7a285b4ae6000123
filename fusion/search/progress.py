"""What a search tells those who watch it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The models are understood and measured; candidates come next.

    Attributes:
        tasks: Their names.
        num_blocks: Of each task.
        num_pairs: Pairs of blocks whose inputs may be shared.
        original_cost: In the search's metric: seconds, FLOPs per sample, parameters or bytes.
        scores: Of the models handed in, on the validation part, by task.
        notes: What the parser and the estimators want known.
    """

    tasks: tuple[str, ...]
    num_blocks: tuple[int, ...]
    num_pairs: int
    original_cost: float
    scores: dict[str, float]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateDone:
    """A candidate has been judged.

    Attributes:
        number: From 1.
        status: ``accepted``, ``failed``, ``unknown`` (ended early) or ``skipped`` (by a filter).
        speedup: Cost of the original over its own, predicted.
        drop: Largest drop of a task on the validation part; NaN if it was not trained.
        epochs: Passes that it got.
        seconds: Since the search began.
        best: Best speedup so far by threshold.
    """

    number: int
    status: str
    speedup: float
    drop: float
    epochs: float
    seconds: float
    best: dict[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Improved:
    """A threshold has a better model.

    Attributes:
        threshold: Which.
        speedup: Predicted.
        drop: On the validation part.
        seconds: Since the search began.
    """

    threshold: float
    speedup: float
    drop: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The search is over; finalists have been measured.

    Attributes:
        why: What ended it.
        num_candidates: How many were judged.
        seconds: Of the whole search.
    """

    why: str
    num_candidates: int
    seconds: float


Event = Started | CandidateDone | Improved | Finished
