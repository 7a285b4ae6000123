"""What became of each stage of a validation, noted while it goes on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from unified.errors import Problem
from unified.validation import Stage, StageOutcome, stage_of


@dataclass(slots=True)
class StageLog:
    """Collects what was found at each stage, and how long it took."""

    _seconds: dict[Stage, float] = field(default_factory=dict)
    _found: dict[Stage, str] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Add what happens inside to the time of ``stage``; it is passed if that ends, and no problem says otherwise."""
        began = time.perf_counter()
        try:
            yield
            self._found.setdefault(stage, "")
        finally:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - began

    def note(self, stage: Stage, found: str) -> None:
        """Take down that ``stage`` was passed, and what was found there in a few words."""
        self._found[stage] = found

    def forget(self, stage: Stage) -> None:
        """Take back that ``stage`` was reached."""
        self._found.pop(stage, None)

    def outcomes(self, problems: Iterable[Problem]) -> tuple[StageOutcome, ...]:
        """Return what became of every stage, in their order; of one that failed, the codes of its problems."""
        failed: dict[Stage, list[str]] = {}
        for code in dict.fromkeys(problem.code for problem in problems):
            failed.setdefault(stage_of(code), []).append(code)
        return tuple(
            StageOutcome(
                stage=stage,
                passed=False if stage in failed else True if stage in self._found else None,
                found=", ".join(failed[stage]) if stage in failed else self._found.get(stage, ""),
                seconds=self._seconds.get(stage),
            )
            for stage in Stage
        )
