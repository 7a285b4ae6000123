"""How requests ended, counted; and a log of the mishits."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from serving.errors import ServingError
from serving.queries import Mishit, Offer, Query
from serving.runtime.events import Event, Outcome, RequestEnded

_log = logging.getLogger(__name__)


class Ledger:
    """Counts how each request ended, by family and tasks.

    MTLsys counts queries that no model satisfies. We count those, and apart from them the answers that were promised in time
    and came late: a service that predicts badly has few of the ones and many of the others.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, tuple[str, ...], Outcome]] = Counter()

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, RequestEnded):
            self._counts[event.family, event.tasks, event.outcome] += 1

    def count(self, outcome: Outcome, *, family: str | None = None, tasks: tuple[str, ...] | None = None) -> int:
        """Return how many requests ended so, of all families and tasks unless one is named."""
        return sum(
            number
            for (its_family, its_tasks, its_outcome), number in self._counts.items()
            if its_outcome is outcome and family in (None, its_family) and tasks in (None, its_tasks)
        )

    def rows(self) -> list[tuple[str, tuple[str, ...], Outcome, int]]:
        """Return family, tasks, outcome and number, sorted."""
        return [(*key, number) for key, number in sorted(self._counts.items())]


class MishitLog:
    """Appends one line of JSON for each mishit: when, what was asked, why nothing satisfies it, what comes nearest."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        try:
            # without a buffer: what a full disk does not take is not to come later, in the middle of another line
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise ServingError(f"the mishit log {path} cannot be written: {error.strerror}; give another file") from error
        self._clock = clock

    def write(self, family: str, query: Query, mishit: Mishit, *, rows: int) -> None:
        """Append one."""
        line = {
            "time": round(self._clock(), 3),
            "family": family,
            "rows": rows,
            "query": _query_json(query),
            "reason": str(mishit.reason),
            "closest": [_offer_json(offer) for offer in mishit.closest],
        }
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:  # a full disk is no reason to answer no more
            _log.warning("a mishit is not in the log: %s", error)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _query_json(query: Query) -> dict[str, object]:
    floor = query.min_accuracy
    return {
        "tasks": sorted(query.tasks),
        "latency_ms": query.latency_ms,
        "min_accuracy": floor if floor is None or isinstance(floor, float | int) else dict(floor),
        "accuracy_mode": str(query.accuracy_mode),
        "budget": str(query.budget),
        "on_mishit": str(query.on_mishit),
        "priority": query.priority,
    }


def _offer_json(offer: Offer) -> dict[str, object]:
    return {
        "version": offer.version,
        "predicted_ms": round(offer.predicted_ms, 3),
        "accuracy": {task: round(score, 4) for task, score in offer.accuracy.items()},
    }
