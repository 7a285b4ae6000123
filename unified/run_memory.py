"""What a run remembers for ``--resume`` beside its jobs: the scheduler's memory, and what each job has had. Free of torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from unified.job_state import ENDED
from unified.ledger import JobRecord, Ledger
from unified.run_state import RunFolder
from unified.telling import Telling

SAVE_SECONDS = 5.0

logger = logging.getLogger(__name__)

_ACCOUNTS = ("step_seconds", "slot_seconds", "num_preemptions")


@dataclass(slots=True, kw_only=True)
class RunMemory:
    """Keeps the memory in the run's folder, a few seconds old at most.

    Attributes:
        folder: The run's folder.
        telling: Whose memory it is.
        ledger: The jobs.
    """

    folder: RunFolder
    telling: Telling
    ledger: Ledger
    _accounts: dict[str, Any] = field(default_factory=dict)
    _next_save: float = 0.0

    def take_over(self) -> None:
        """Go on with what an earlier run left here; the scheduler's memory if it is the same scheduler."""
        content = self.folder.load_memory()
        jobs = content.get("jobs")
        self._accounts = jobs if isinstance(jobs, dict) else {}
        if content.get("scheduler") == self.telling.name:
            self.telling.take_over(content.get("memory"))

    def restore(self, records: Sequence[JobRecord]) -> None:
        """Give jobs that go on what they have had."""
        for record in records:
            account = self._accounts.get(record.name)
            if isinstance(account, dict) and record.state not in ENDED:
                for name in _ACCOUNTS:
                    number = account.get(name)
                    if isinstance(number, int | float) and 0 <= number < 1e18:
                        setattr(record, name, number)

    def save_if_due(self, now: float) -> None:
        """Save, every few seconds."""
        if now >= self._next_save:
            self._next_save = now + SAVE_SECONDS
            self.save()

    def save(self) -> None:
        """Write down what there is now; a disk that takes nothing ends no run for that."""
        living = [record for record in self.ledger.all() if record.state not in ENDED]
        jobs = {record.name: {name: getattr(record, name) for name in _ACCOUNTS} for record in living}
        try:
            self.folder.save_memory({"scheduler": self.telling.name, "memory": self.telling.memory(), "jobs": jobs})
        except (OSError, TypeError, ValueError) as error:  # a plug-in's memory may be no JSON
            logger.warning("what scheduler %s remembers could not be saved: %s", self.telling.name, error)
