"""The members of a hybrid as their worker knows them, and how their checkpoints are written while they train."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from unified import messages
from unified.budgets import is_of_disk
from unified.checkpoint import Saved, Snapshot, take_snapshot, write_snapshot
from unified.errors import UnifiedError
from unified.member import Member

MAX_CHECKPOINT_SECONDS = 600.0  #: no interval is stretched beyond this
CHECKPOINT_SHARE = 0.02  #: of a job's time is what its checkpoints may cost; the interval is stretched to that


@dataclass(slots=True, kw_only=True)
class Resident:
    """A member in the hybrid, how it came, and its checkpoints."""

    member: Member
    command: messages.Host
    last_checkpoint: float
    checkpoint_cost: float = 0.0

    @property
    def least_seconds(self) -> float:
        """The shortest interval at which checkpoints are cheap enough for what the last one cost."""
        return min(self.checkpoint_cost / CHECKPOINT_SHARE, MAX_CHECKPOINT_SECONDS)

    @property
    def is_checkpoint_due(self) -> bool:
        """Whether it is time for a checkpoint, at the step boundary where the member stands."""
        every, wanted = self.member.spec.checkpoint.every_steps, self.command.checkpoint_seconds
        if self.member.is_done:
            return False
        if every is not None:
            return self.member.progress.step % every == 0
        if wanted is None:
            return False
        return time.monotonic() - self.last_checkpoint >= max(wanted, self.least_seconds)


class Saver:
    """Writes checkpoints: the state is copied at once, and a thread writes it while others train.

    Args:
        say: Reports to the engine; for the main thread.
        later: Has the main thread call something at a step boundary.
    """

    def __init__(self, *, say: Callable[[messages.Report], None], later: Callable[[Callable[[], None]], None]) -> None:
        self._say = say
        self._later = later
        self._writing: threading.Thread | None = None

    def save(self, resident: Resident, *, is_leaving: bool = False) -> bool:
        """Write a checkpoint of a member whose state is up to date; of one that is leaving before this returns.

        Returns:
            False, with a report, if the disk refuses a leaving job's: no reason for the job to end.
        """
        self.finish()
        began = time.monotonic()
        snapshot = take_snapshot(resident.member, resident.command.checkpoints, resident.command.epoch)
        resident.last_checkpoint = time.monotonic()
        resident.checkpoint_cost = resident.last_checkpoint - began
        if is_leaving:
            return self._write(snapshot, resident, began, self._say, is_leaving=True)
        later = lambda report: self._later(lambda: self._say(report))  # noqa: E731 - the main thread alone speaks
        self._writing = threading.Thread(target=self._write, args=(snapshot, resident, began, later), daemon=True)
        self._writing.start()
        return True

    def finish(self) -> None:
        """Wait until what is being written is on disk."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def _write(
        self,
        snapshot: Snapshot,
        resident: Resident,
        began: float,
        say: Callable[[messages.Report], None],
        *,
        is_leaving: bool = False,
    ) -> bool:
        job = resident.member.name
        try:
            saved = write_snapshot(snapshot, forgets_old=resident.command.restore_from is None)
        except OSError as error:
            is_disk, size = is_of_disk(error), len(snapshot.content)
            reason = one_line(error)
            say(messages.CheckpointFailed(job=job, reason=reason, is_staying=is_leaving, is_disk=is_disk, num_bytes=size))
            return False
        say(_checkpointed(job, saved, time.monotonic() - began, resident.least_seconds))
        return True


def one_line(error: BaseException) -> str:
    """Say in one line what went wrong."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, UnifiedError) else f"{type(error).__name__}: {text}"


def _checkpointed(job: str, saved: Saved, seconds: float, least_seconds: float) -> messages.Checkpointed:
    return messages.Checkpointed(
        job=job,
        step=saved.step,
        path=saved.path,
        sha256=saved.sha256,
        num_bytes=saved.num_bytes,
        seconds=seconds,
        least_seconds=least_seconds,
    )
