"""One unit under way in a simulation: how far it is, and what a scheduler may see of it."""

from __future__ import annotations

from math import ceil, inf

from schedulers.base import Epochs, Event, JobView, Quantum, Seconds, Steps
from schedulers.simulation.workload import SimJob

FINE_STEPS = 1_000_000  #: of a job whose steps are not given: a millionth of it is no matter


class SimUnit:
    """The state of one job. Work is counted in seconds of a slot of its own.

    While it runs, ``done`` is what had been done at ``since``, and it goes on at ``rate`` from there; ``finish_at`` and
    ``quantum_at`` say when it will be done and when its quantum ends.
    """

    def __init__(self, job: SimJob, *, stays: bool) -> None:
        self.job = job
        self._stays = stays  # on the slot of its first turn
        if job.steps_total is None:
            self.steps_per_epoch = ceil(FINE_STEPS / job.num_epochs)
            self.steps_total = self.steps_per_epoch * job.num_epochs
        else:
            self.steps_per_epoch = ceil(job.steps_total / job.num_epochs)
            self.steps_total = job.steps_total
        self.step_seconds = job.seconds / self.steps_total
        self.done = self.done_before = self.rate = self._told = 0.0
        self._steps_told = self._sequence = self.preemptions = self.cuts = 0
        self.since = self.ended = self.began = self.turn_began = job.submit_time
        self.finish_at = self.quantum_at = inf
        self.longest_wait = 0.0
        self.first_start: float | None = None
        self.slot_id: int | None = None
        self.last_turn: int | None = None
        self._is_work, self._length, self._limit = True, inf, inf
        self._fixed = self._fixed_part()
        self._view: JobView | None = None

    def start(self, now: float, slot_id: int, quantum: Quantum, overhead: float) -> None:
        """Begin a turn; nothing is done in its first ``overhead`` seconds. ``set_rate`` must follow."""
        if not self.goes_on(now, slot_id):
            self.began, self.done_before = now, self.done
        if self.first_start is None:
            self.first_start = now
        elif self.ended < now:
            self.preemptions += 1
        self.longest_wait = max(self.longest_wait, now - self.ended)
        self.slot_id, self.turn_began, self.since = slot_id, now, now + overhead
        self._set_quantum(quantum)
        self._view = None

    def goes_on(self, now: float, slot_id: int) -> bool:
        """Say whether a turn there would continue one that has just ended."""
        return self.first_start is not None and self.ended == now and self.slot_id == slot_id

    def set_rate(self, now: float, rate: float) -> None:
        """Go on at another rate."""
        if now > self.since:
            self.done = self.done_at(now)
            self.since = now
        self.rate = rate
        self._foresee()

    def move(self, now: float, slot_id: int) -> None:
        """Go on elsewhere. ``set_rate`` must follow."""
        self.began, self.done_before, self.slot_id = now, self.done_at(now), slot_id

    def stall(self, seconds: float) -> None:
        """Do nothing for so long from the last change of the rate on."""
        self.since += seconds
        self._foresee()

    def stop(self, now: float) -> None:
        """End the turn; what has been done is kept."""
        self.done = self.job.seconds if self.finish_at <= now else self.done_at(now)
        self.rate = 0.0
        self.ended = now
        self.finish_at = self.quantum_at = inf
        self._view = None

    def done_at(self, now: float) -> float:
        """Return the work done by then."""
        return min(self.job.seconds, self.done + max(0.0, now - self.since) * self.rate)

    def renew(self, now: float) -> float | None:
        """Let the turn go on for the quanta that lapsed before now, as nobody waited; return when the last of them ended."""
        if self.quantum_at >= now:
            return None
        if self._is_work:
            lapsed = int((self.done_at(now) - self._limit) / self._length)
            at = self.quantum_at + lapsed * self._length / self.rate
        else:
            lapsed = ceil((now - self._limit) / self._length) - 1
            at = self._limit + lapsed * self._length
        self._limit += (lapsed + 1) * self._length
        self._foresee()
        return min(at, now)

    def report(self, now: float) -> tuple[int, float]:
        """Return the steps and the seconds of slot time up to now since the last report."""
        done = self.done_at(now)
        steps = self._steps(done)
        news = steps - self._steps_told, done - self._told
        self._steps_told, self._told = steps, done
        return news

    def event(self, kind: type[Event], **fields: float) -> Event:
        """Return the next event of this unit."""
        self._sequence += 1
        return kind(
            unit_id=self.job.id,
            sequence=self._sequence,
            user_shares=((self.job.user, 1.0),),
            weight=self.job.weight,
            **fields,  # type: ignore[arg-type]
        )

    def waiting_view(self) -> JobView:
        """Return what a scheduler sees of it while it waits; the same record until it runs."""
        if self._view is None:
            self._view = self._make_view(self.done, self.ended, self.slot_id if self._stays else None)
        return self._view

    def running_view(self, now: float) -> JobView:
        """Return what a scheduler sees of it while it runs."""
        return self._make_view(self.done_at(now), self.turn_began, self.slot_id)

    def _make_view(self, done: float, waiting_since: float, slot_id: int | None) -> JobView:
        return JobView(
            **self._fixed,
            waiting_since=waiting_since if self.first_start is not None else None,
            steps_done=self._steps(done),
            attained_seconds=done,
            num_preemptions=self.cuts,
            has_begun=self.first_start is not None,
            slot_id=slot_id,
        )

    def _fixed_part(self) -> dict:
        job = self.job
        return {
            "id": job.id,
            "submit_time": job.submit_time,
            "user_shares": ((job.user, 1.0),),
            "priority": job.priority,
            "weight": job.weight,
            "deadline": job.deadline,
            "is_deadline_soft": job.is_deadline_soft,
            "num_parameters": job.num_parameters,
            "num_epochs": job.num_epochs,
            "steps_per_epoch": self.steps_per_epoch,
            "steps_total": self.steps_total,
            "step_seconds": self.step_seconds if job.estimate_seconds is None else None,
            "estimate_seconds": job.estimate_seconds,
        }

    def _steps(self, done: float) -> int:
        if done >= self.job.seconds:
            return self.steps_total
        return int(done / self.step_seconds + 1e-6)  # the sum of n steps may be a little less than n times a step

    def _set_quantum(self, quantum: Quantum) -> None:
        """Note where the quantum ends: at a time, or at an amount of work."""
        self._is_work = not isinstance(quantum, Seconds)
        self._length = self._limit = inf
        if isinstance(quantum, Seconds):
            # from when it begins to work: else a quantum shorter than the switch would get nothing done
            self._length, self._limit = quantum.count, self.since + quantum.count
        elif isinstance(quantum, Steps):
            self._length = quantum.count * self.step_seconds
            self._limit = self.done + self._length
        elif isinstance(quantum, Epochs) and self.step_seconds > 0:
            epoch = self.steps_per_epoch * self.step_seconds
            self._length = quantum.count * epoch
            self._limit = int(self.done / epoch + 1e-6) * epoch + self._length

    def _foresee(self) -> None:
        self.finish_at = self.since + (self.job.seconds - self.done) / self.rate
        self.quantum_at = self.since + max(0.0, self._limit - self.done) / self.rate if self._is_work else self._limit
