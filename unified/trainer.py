"""One turn of one member, with one job's failure contained in it (the pieces of a turn: ``stepping.py``)."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from schedulers.base import Quantum
from unified.hybrid import HybridModule
from unified.member import Member
from unified.process_settings import ProcessSettings
from unified.random_state import RandomState
from unified.stepping import Hooks, MemberTurn, TurnReport, describe_failure, quantum_clock


class Trainer:
    """Trains the members of one hybrid, one turn at a time.

    Args:
        hybrid: The module that holds the members.
        device: Where it is.
        num_threads: Intra-op threads of every step on a CPU.
    """

    def __init__(self, hybrid: HybridModule, device: torch.device, num_threads: int) -> None:
        self.hybrid = hybrid
        self.device = device
        self.num_threads = num_threads
        self.settings = ProcessSettings.capture()
        self.reads_loss_lazily = device.type != "cpu"
        self._bytes_beside = 0  # on a GPU: what parked members and data hold there while a member has its turn
        self._turn: MemberTurn | None = None  # that of the member whose state is in place

    def settle(self, member: Member) -> None:
        """Bring the state of the member whose turn it is up to date, as a checkpoint inside the turn needs it."""
        member.random = RandomState.capture(self.device)
        if self._turn is not None:
            self._turn.settle()

    def run_turn(self, member: Member, quantum: Quantum, hooks: Hooks) -> TurnReport:
        """Train ``member`` until its quantum is used up, it is done, it fails, or ``hooks.between_steps`` says stop.

        Whatever the member's own code raises ends here, in the report; the other members are untouched.
        """
        turn, failure = self.begin(member, hooks), None
        try:
            self.go_on(turn, hooks.between_steps, quantum_clock(member, quantum))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the one border where a job's failure is contained
            failure = describe_failure(member, error)
        return turn.report(failure)

    def begin(self, member: Member, hooks: Hooks) -> MemberTurn:
        """Begin to keep the notes of a turn of ``member``."""
        return MemberTurn(self.hybrid, member, hooks, is_lazy=self.reads_loss_lazily)

    def go_on(self, turn: MemberTurn, between_steps: Callable[[], bool], is_over: Callable[[], bool]) -> None:
        """Train the turn's member until it is done or one of the two says stop; what it raises is raised."""
        member = turn.member
        self._enter(member)
        self._turn = turn
        try:
            while not member.is_done:
                began = time.perf_counter()
                turn.step_alone(next(member.order), began)
                if turn.ends_epoch:
                    turn.end_epoch()
                turn.report_if_due()
                if between_steps() or is_over():
                    break
            turn.settle()
        finally:
            self._turn = None
            self._leave(member)

    def put_in_place(self, member: Member) -> None:
        """Put the member's random state, its precision and the process's switches in place."""
        self.put_switches_back()
        member.random.restore()
        member.precision.enter_turn()

    def put_switches_back(self) -> None:
        """Turn the process's switches to where they were, whoever turned them."""
        self.settings.restore(self.num_threads if self.device.type == "cpu" else None)

    def _enter(self, member: Member) -> None:
        self.put_in_place(member)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._bytes_beside = torch.cuda.memory_allocated(self.device) - member.held_bytes

    def _leave(self, member: Member) -> None:
        member.random = RandomState.capture(self.device)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            own_bytes = torch.cuda.max_memory_allocated(self.device) - self._bytes_beside
            member.peak_bytes = max(member.peak_bytes, own_bytes)
