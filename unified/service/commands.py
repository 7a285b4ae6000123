"""What users ask of jobs that are on slots: carried out in order, and answered when it is so. Free of torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from unified.conductor import Conductor
from unified.job_state import ENDED, JobState
from unified.ledger import JobRecord
from unified.queue.errors import QueueError
from unified.queue.records import CommandRow
from unified.queue.store import JobStore

CANCEL_SECONDS = 10.0  #: a job that comes to no step boundary for so long after a cancel loses its worker

logger = logging.getLogger(__name__)

#: What a verb comes to for a job that is on no slot: the states it may be in, and the one it goes to.
_OFF_SLOT: dict[str, tuple[frozenset[JobState], JobState, str]] = {
    "pause": (frozenset({JobState.QUEUED, JobState.RETRY_WAIT}), JobState.PAUSED, "paused on request"),
    "resume": (frozenset({JobState.PAUSED}), JobState.QUEUED, "resumed"),
    "cancel": (frozenset({JobState.QUEUED, JobState.RETRY_WAIT, JobState.PAUSED}), JobState.CANCELLED, "cancelled on request"),
}
_GOALS = {"pause": JobState.PAUSED, "cancel": JobState.CANCELLED}


@dataclass(slots=True, kw_only=True)
class _Open:
    command: CommandRow
    record: JobRecord
    epoch: int
    since: float


@dataclass(slots=True, kw_only=True)
class Commands:
    """Carries commands out.

    Attributes:
        store: Where they are written down.
        conductor: Who tells the workers.
        before_answer: Called before anybody is told that a job is gone from its slot.
    """

    store: JobStore
    conductor: Conductor
    before_answer: Callable[[], None]
    _open: dict[int, _Open] = field(default_factory=dict)

    def look(self) -> None:
        """Begin new commands, in order, and answer those that are done."""
        for command in self.store.pending():
            if command.sequence not in self._open:
                self._begin(command)
        self.settle()

    def settle(self) -> None:
        """Answer commands whose end has come; take the worker from a cancelled job that does not let go."""
        for opened in list(self._open.values()):
            outcome = self._outcome(opened)
            if outcome is not None:
                self._answer(opened.command, outcome)

    def checkpointed(self, job: str, step: int, path: str) -> None:
        """A checkpoint of ``job`` is current: whoever asked for one is answered."""
        for opened in list(self._open.values()):
            if opened.command.job == job and opened.command.verb == "checkpoint":
                self._answer(opened.command, f"done: step {step}, {path}")

    def checkpoint_refused(self, job: str, reason: str) -> None:
        """No checkpoint of ``job`` could be written."""
        for opened in list(self._open.values()):
            if opened.command.job == job and opened.command.verb in {"checkpoint", "pause"}:
                self._answer(opened.command, f"conflict: no checkpoint could be written: {reason}")

    def _answer(self, command: CommandRow, outcome: str) -> None:
        if command.verb in _GOALS:
            try:
                self.before_answer()
            except OSError as error:
                logger.warning("status.json cannot be written: %s", error)
        self.store.settle(command.sequence, outcome)
        self._open.pop(command.sequence, None)

    def _begin(self, command: CommandRow) -> None:
        record = self.conductor.books.ledger.get(command.job)
        if record is None or record.slot is None:
            self._answer(command, self._off_slot(command))
            return
        self._open[command.sequence] = _Open(command=command, record=record, epoch=record.epoch, since=time.monotonic())
        match command.verb:
            case "pause":
                self.conductor.pause(record, f"paused by {command.by}")
            case "resume":
                self.conductor.resume(record)
            case "cancel":
                self.conductor.cancel(record)
            case "checkpoint":
                self.conductor.checkpoint(record)

    def _off_slot(self, command: CommandRow) -> str:
        """Carry out a command for a job that has left its slot since it was asked."""
        try:
            row = self.store.get(command.job)
            if command.verb == "checkpoint":
                saved = self.store.checkpoints(command.job)
                return f"done: step {saved[0].step}, {saved[0].path}" if saved else f"conflict: it is {row.state} and has none"
            old, to, reason = _OFF_SLOT[command.verb]
            if row.state is to or (command.verb == "resume" and row.state is JobState.QUEUED):
                return "done"
            if row.state not in old:
                return f"conflict: it is {row.state}"
            self.store.move(row.id, to, old=row.state, epoch=row.epoch, reason=reason, by=command.by)
        except QueueError as error:
            return f"conflict: {error}"
        return "done"

    def _outcome(self, opened: _Open) -> str | None:
        """Return what to answer, None while the job is still on its way."""
        record, verb = opened.record, opened.command.verb
        if record.state is _GOALS.get(verb) or (verb == "resume" and record.state is not JobState.PAUSING):
            return "done"
        if record.state in ENDED or record.epoch != opened.epoch:
            return f"conflict: it is {record.state}"
        if record.slot is None:  # it left for another reason meanwhile
            return self._off_slot(opened.command)
        if verb == "cancel" and time.monotonic() - opened.since > CANCEL_SECONDS:
            self._insist(record)
        return None

    def _insist(self, record: JobRecord) -> None:
        """The job comes to no step boundary: its worker is replaced, and its neighbours go on from their checkpoints."""
        assert record.slot is not None, "only a job on a slot does not let go"
        slot = self.conductor.slots[record.slot]
        if record.name in {*slot.turn, slot.attending} and not slot.is_stalled:
            logger.warning("job %s does not let go of slot %s; its worker is replaced", record.name, slot.index)
            self.conductor.stop_stalled(slot)
