"""Whatever users ask, workers report and kills interrupt, in whatever order: jobs move as the table of states says.

The table is written down here a second time, in the words of a user: what each verb does in each state. A plain model follows
it, and the store and the verbs must agree with the model after each step. ``UNIFIED_SEQUENCES=10000`` tries as many sequences.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from tests.unit.store_cases import TurnedClock, check_histories, check_row, checkpoint, new_job
from unified.job_state import ENDED, RESIDENT, IllegalMoveError, JobState
from unified.queue.config import ServiceConfig
from unified.queue.errors import ConflictError, FencedError
from unified.queue.records import Progress
from unified.queue.root import Root
from unified.queue.store import JobStore
from unified.queue.verbs import Queue

S = JobState
SEQUENCES = int(os.environ.get("UNIFIED_SEQUENCES", "25"))
LEASE_SECONDS = 30.0
RETRY_SECONDS = 10.0

#: Done at once, as the job is on no slot.
AT_ONCE = {
    ("pause", S.QUEUED): S.PAUSED,
    ("pause", S.RETRY_WAIT): S.PAUSED,
    ("resume", S.PAUSED): S.QUEUED,
    ("cancel", S.QUEUED): S.CANCELLED,
    ("cancel", S.RETRY_WAIT): S.CANCELLED,
    ("cancel", S.PAUSED): S.CANCELLED,
    ("requeue", S.FAILED): S.QUEUED,
    ("requeue", S.DEAD): S.QUEUED,
    ("requeue", S.CANCELLED): S.QUEUED,
}
#: Answered with a conflict; what is in neither table is so already, or is for the supervisor to do.
IMPOSSIBLE = {
    "pause": {S.CANCELLING, *ENDED},
    "resume": {S.CANCELLING, *ENDED},
    "cancel": {S.FINISHED, S.FAILED, S.DEAD},
    "requeue": {S.PAUSING, S.PAUSED, S.CANCELLING, S.FINISHED},
    "checkpoint": {S.CANCELLING, *ENDED},
}
#: Where the supervisor takes a job that it is asked for.
BY_SUPERVISOR = {
    ("pause", S.LOADING): S.PAUSING,
    ("pause", S.RUNNING): S.PAUSING,
    ("resume", S.PAUSING): S.RUNNING,
    ("cancel", S.LOADING): S.CANCELLING,
    ("cancel", S.RUNNING): S.CANCELLING,
    ("cancel", S.PAUSING): S.CANCELLING,
}
#: Where a job goes whose supervisor died.
AFTER_A_CRASH = {S.LOADING: S.QUEUED, S.RUNNING: S.QUEUED, S.PAUSING: S.PAUSED, S.CANCELLING: S.CANCELLED}

JOBS = st.integers(0, 3)


@dataclass
class Model:
    """What is to be true of one job."""

    state: JobState = S.QUEUED
    epoch: int = 0
    steps: int = 0
    saved: list[tuple[int, int]] = field(default_factory=list)  #: (epoch, step), oldest first


class StoreMachine(RuleBasedStateMachine):
    """One supervisor after another, users, and what may happen to them."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.root = Root.make(self.folder)
        self.now = TurnedClock()
        self.num_holders = 1
        self.models: dict[str, Model] = {}
        self.store = JobStore.open(self.root.database, clock=self.now.clock)

    @property
    def holder(self) -> str:
        return f"supervisor-{self.num_holders}"

    @property
    def queue(self) -> Queue:
        return Queue(self.root, self.store, ServiceConfig())

    def any_in(self, number: int, *states: JobState) -> str | None:
        """Choose a job that is in one of ``states``."""
        found = sorted(job for job, model in self.models.items() if model.state in states)
        return found[number % len(found)] if found else None

    def move(self, job: str, to: JobState, **changes: object) -> None:
        model = self.models[job]
        holder = self.holder if model.state in RESIDENT else None
        self.store.move(job, to, old=model.state, epoch=model.epoch, reason="r", by="supervisor", holder=holder, **changes)
        model.state = to

    # Users

    @rule(number=JOBS)
    def submit(self, number: int) -> None:
        new = new_job(number)
        assert self.store.submit(new, by="ada").is_new == (new.id not in self.models)
        self.models.setdefault(new.id, Model())
        self.root.spec(new.id).mkdir(parents=True, exist_ok=True)
        (self.root.spec(new.id) / "job.json").write_text("{}")

    @rule(number=JOBS, verb=st.sampled_from(["pause", "resume", "cancel", "requeue", "checkpoint"]), from_scratch=st.booleans())
    def ask(self, number: int, verb: str, from_scratch: bool) -> None:
        job = self.any_in(number, *S)
        if job is None:
            return
        model = self.models[job]
        details = {"from_scratch": from_scratch} if verb == "requeue" else {}
        nothing_to_save = verb == "checkpoint" and model.state not in RESIDENT and not model.saved
        # One that runs cannot begin anew under its own feet; being queued again is what it is already.
        too_late = verb == "requeue" and from_scratch and ("requeue", model.state) not in AT_ONCE
        if model.state in IMPOSSIBLE[verb] or nothing_to_save or too_late:
            with pytest.raises(ConflictError, match=f"{job}.*{model.state}"):
                getattr(self.queue, verb)(job, by="ada", **details)
            return
        before = model.state
        outcome = getattr(self.queue, verb)(job, by="ada", **details)
        model.state = AT_ONCE.get((verb, before), before)
        if verb == "requeue" and model.state is not before and from_scratch:
            model.steps, model.saved = 0, []
        assert outcome.job.state == model.state
        again = getattr(self.queue, verb)(job, by="ada")  # once more changes nothing
        assert (again.job.state, again.command) == (model.state, outcome.command)

    # The supervisor

    @rule(number=JOBS)
    def place(self, number: int) -> None:
        job = self.any_in(number, S.QUEUED)
        if job is None:
            return
        self.store.lease(job, holder=self.holder, slot=0, seconds=LEASE_SECONDS, reason="placed", by="supervisor")
        model = self.models[job]
        model.state, model.epoch = S.LOADING, model.epoch + 1

    @rule(number=JOBS)
    def load(self, number: int) -> None:
        job = self.any_in(number, S.LOADING)
        if job is not None:
            self.move(job, S.RUNNING)

    @rule(number=JOBS)
    def train(self, number: int) -> None:
        job = self.any_in(number, S.RUNNING)
        if job is None:
            return
        model = self.models[job]
        model.steps += 1
        assert not self.store.note([Progress(job=job, epoch=model.epoch, steps_done=model.steps)], holder=self.holder)

    @rule()
    def carry_out_commands(self) -> None:
        for command in self.store.pending():
            model = self.models[command.job]
            to = BY_SUPERVISOR.get((command.verb, model.state))
            if to is not None:
                self.move(command.job, to)
            elif command.verb == "checkpoint" and model.state in RESIDENT:
                self.save(command.job)
            self.store.settle(command.sequence, "done")

    def save(self, job: str) -> None:
        model = self.models[job]
        self.store.add_checkpoint(checkpoint(job, model.epoch, model.steps), holder=self.holder)
        model.saved = sorted({*model.saved, (model.epoch, model.steps)})

    @rule(number=JOBS)
    def free_the_slot(self, number: int) -> None:
        job = self.any_in(number, S.PAUSING, S.CANCELLING)
        if job is None:
            return
        if self.models[job].state is S.PAUSING:
            self.save(job)
        self.move(job, AFTER_A_CRASH[self.models[job].state])

    @rule(number=JOBS)
    def finish(self, number: int) -> None:
        job = self.any_in(number, S.RUNNING, S.PAUSING)
        if job is not None:
            self.move(job, S.FINISHED, result_path=f"results/{job}")

    @rule(number=JOBS)
    def no_result_comes_of_a_job_that_is_being_cancelled(self, number: int) -> None:
        job = self.any_in(number, S.CANCELLING)
        if job is not None:
            with pytest.raises(IllegalMoveError):
                self.move(job, S.FINISHED, result_path=f"results/{job}")

    @rule(number=JOBS, to=st.sampled_from([S.RETRY_WAIT, S.FAILED, S.DEAD, S.QUEUED]))
    def fail(self, number: int, to: JobState) -> None:
        job = self.any_in(number, S.LOADING, S.RUNNING)
        if job is not None:
            self.move(job, to, **({"not_before": self.now.wall + RETRY_SECONDS} if to is S.RETRY_WAIT else {}))

    @rule(seconds=st.sampled_from([1.0, RETRY_SECONDS]), jump=st.sampled_from([0.0, 0.0, 3600.0, -3600.0]))
    def time_passes(self, seconds: float, jump: float) -> None:
        self.now.turn(seconds)
        self.now.wall += jump
        held = {job for job, model in self.models.items() if model.state in RESIDENT}
        assert self.store.renew(self.holder, LEASE_SECONDS) == held
        for row in self.store.due():
            assert self.models[row.id].state is S.RETRY_WAIT
            self.move(row.id, S.QUEUED)

    @rule(reboots=st.booleans())
    def crash(self, reboots: bool) -> None:
        """The supervisor is gone; another one takes over when its leases are; then the first wakes up."""
        if reboots:
            self.now.boot_id += "+"
        else:
            self.now.turn(LEASE_SECONDS)
        gone, before = self.holder, {job: (model.state, model.epoch) for job, model in self.models.items()}
        lost = {row.id for row in self.store.expired()}
        assert lost == {job for job, model in self.models.items() if model.state in RESIDENT}
        for job in sorted(lost):
            self.move(job, AFTER_A_CRASH[self.models[job].state])
        self.num_holders += 1
        for job in sorted(lost):
            self.late_writes_change_nothing(job, *before[job], holder=gone)

    def late_writes_change_nothing(self, job: str, state: JobState, epoch: int, *, holder: str) -> None:
        number = self.store.fenced_writes
        assert self.store.note([Progress(job=job, epoch=epoch, steps_done=10**6)], holder=holder) == {job}
        with pytest.raises(FencedError):
            self.store.add_checkpoint(checkpoint(job, epoch, 10**6), holder=holder)
        to = S.CANCELLED if state is S.CANCELLING else S.FAILED
        with pytest.raises(FencedError):
            self.store.move(job, to, old=state, epoch=epoch, reason="late", by=holder, holder=holder)
        assert self.store.fenced_writes == number + 3
        assert self.store.renew(holder, LEASE_SECONDS) == set()

    @precondition(lambda self: self.models)
    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.store = JobStore.open(self.root.database, clock=self.now.clock)

    @rule(number=JOBS)
    def forget(self, number: int) -> None:
        job = self.any_in(number, *S)
        if job is None:
            return
        if self.models[job].state in ENDED:
            self.store.forget(job)
            del self.models[job]
        else:
            with pytest.raises(ConflictError):
                self.store.forget(job)

    @invariant()
    def store_and_model_agree(self) -> None:
        rows = {row.id: row for row in self.store.jobs()}
        assert set(rows) == set(self.models)
        for job, model in self.models.items():
            row = rows[job]
            check_row(row)
            assert (row.state, row.epoch, row.steps_done) == (model.state, model.epoch, model.steps)
            assert [(saved.epoch, saved.step) for saved in self.store.checkpoints(job)] == model.saved[::-1]

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        try:
            self.nothing_is_stuck()
            check_histories(self.store)
        finally:
            self.store.close()
            shutil.rmtree(self.folder)

    def nothing_is_stuck(self) -> None:
        """From wherever they are, jobs end when they are cancelled and the supervisor does its part."""
        for job in self.models:
            with contextlib.suppress(ConflictError):
                self.ask_to_cancel(job)
        self.carry_out_commands()
        for number in range(len(self.models)):
            self.free_the_slot(number)
        self.carry_out_commands()
        assert {model.state for model in self.models.values()} <= ENDED
        assert self.store.pending() == []
        self.store_and_model_agree()

    def ask_to_cancel(self, job: str) -> None:
        self.models[job].state = self.queue.cancel(job, by="ada").job.state


def test_jobs_move_as_the_table_says_whatever_happens_in_whatever_order():
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=SEQUENCES,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
