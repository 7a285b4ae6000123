"""One turn of several members that step as one, with each job's failure contained in it. One member's turn is the trainer's.

Members step as one only while that is faster than side by side: a probe times real steps both ways (``stack_probe.py``).
Each keeps its own batches, progress, epochs, evaluations and end; one that fails, is done or is told to leave goes at a step
boundary, and the others go on.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from schedulers.base import Epochs, Quantum, Seconds, Steps
from unified.errors import NotStackableError
from unified.formation import Formation, check_equal
from unified.member import Member
from unified.random_state import RandomState
from unified.residents import one_line
from unified.stack_probe import Probe
from unified.stepping import Hooks, MemberTurn, NonFiniteLossError, TurnReport, check_finite, describe_failure
from unified.trainer import Trainer

Draw = tuple[MemberTurn, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class StackHooks:
    """What the host of a turn wants to hear, beside what it hears of each member.

    Attributes:
        each: As for one member's turn; ``between_steps`` is called once for all.
        on_out: A member's turn is over: it is done, it failed, the quantum is used up, or the stack was refused.
        on_left: A member that was told to leave has left, up to date.
        on_formed: These step as one from now on, so many times faster than side by side.
        on_refused: These do not step as one, for this reason; with the speed-up if it was measured.
    """

    each: Hooks
    on_out: Callable[[Member, TurnReport], None]
    on_left: Callable[[Member], None]
    on_formed: Callable[[Sequence[Member], float], None]
    on_refused: Callable[[Sequence[Member], str, float | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StackTerms:
    """On which terms members step as one.

    Attributes:
        least_speedup: They must be more than so many times faster than side by side.
        speedup: What was measured of such a stack before; None: measure it.
        probe: What was measured of it in earlier turns, to be gone on with; None: begin anew.
    """

    least_speedup: float = 1.1
    speedup: float | None = None
    probe: Probe | None = None


class StackTurn:
    """A turn of one or several members, which may grow and shrink while it lasts.

    Args:
        trainer: Trains one member at a time.
        quantum: How long the turn lasts: so many steps of all, until each living member has ended so many epochs, ….
        hooks: What the host wants to hear.
        terms: When to step as one.
    """

    def __init__(self, trainer: Trainer, quantum: Quantum, hooks: StackHooks, terms: StackTerms) -> None:
        self._trainer = trainer
        self._hooks = hooks
        self._least_speedup, self._speedup = terms.least_speedup, terms.speedup
        self._probe = terms.probe or Probe()
        self._formation = Formation()
        self._quantum = quantum
        self._deadline = time.perf_counter() + quantum.count if isinstance(quantum, Seconds) else float("inf")
        self._turns: list[MemberTurn] = []
        self._first_epochs: dict[str, int] = {}
        self._joining: list[Member] = []
        self._leaving: set[str] = set()
        self._failing: list[tuple[MemberTurn, NonFiniteLossError]] = []
        self._refusal: str | None = None
        self._is_refused = self._is_stopping = self._is_alone = False
        self._size = self._num_steps = self._num_failed = 0

    @property
    def members(self) -> list[Member]:
        """Whose turn it is, the leader first."""
        return [turn.member for turn in self._turns]

    def is_in(self, member: Member) -> bool:
        """Whether the member has this turn, or waits to join it."""
        return member in self.members or member in self._joining

    def run(self) -> None:
        """Train who joined until the quantum is used up, nobody is left, or ``between_steps`` says stop."""
        try:
            self._heed()
            self._size = len(self._turns)
            while self._turns and not (self._is_stopping or self._is_over()):
                self._go_on_alone() if len(self._turns) == 1 else self._step_together()
                self._heed()
            self._formation.dissolve()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a fault of the stack itself: none of them is up to date
            for turn in list(self._turns):
                self._fail(turn, error)
        while self._turns:
            with self._contained(self._turns[0]):
                self._end(self._turns[0])
        while self._joining:
            self._turn_away(self._joining.pop())

    def join(self, member: Member) -> None:
        """Let a member join: before the turn, the leader first, or at this step boundary."""
        self._joining.append(member)

    def leave(self, member: Member) -> None:
        """Let a member leave at this step boundary; ``on_left`` is told when it has."""
        if member in self._joining:
            self._joining.remove(member)
            self._hooks.on_left(member)
        else:
            self._leaving.add(member.name)

    def settle(self, member: Member) -> bool:
        """Bring a member up to date as a checkpoint needs it; False if it fails instead, as its loss is not finite."""
        if self._is_alone:
            self._trainer.settle(member)
            return True
        turn = next(turn for turn in self._turns if turn.member is member)
        self._formation.settle(member)
        try:
            turn.settle()
        except NonFiniteLossError as error:
            self._failing.append((turn, error))
            return False
        return True

    def _is_over(self) -> bool:
        match self._quantum:
            case Steps():
                return self._num_steps >= self._quantum.count
            case Epochs():
                return all(
                    member.progress.epoch >= self._first_epochs[member.name] + self._quantum.count for member in self.members
                )
        return time.perf_counter() >= self._deadline

    # ---- step boundaries

    def _heed(self) -> None:
        """Do at a step boundary what was asked for: fail, leave, join."""
        for turn, error in self._failing:
            if turn in self._turns:
                self._fail(turn, error)
        self._failing.clear()
        for turn in [turn for turn in self._turns if turn.member.name in self._leaving]:
            with self._contained(turn):
                self._formation.settle(turn.member)
                turn.settle()
                self._remove(turn)
                self._hooks.on_left(turn.member)
        self._leaving.clear()
        while self._joining and not self._is_stopping and (self._turns or not self._num_steps):
            self._welcome(self._joining.pop(0))

    def _welcome(self, member: Member) -> None:
        try:
            if not self._is_refused:
                self._formation.join(member)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the others are as they were
            self._hooks.on_refused([member], f"could not join: {one_line(error)}", None)
        else:
            if not self._is_refused:
                self._let_in(member)
                if self._formation.is_formed and self._speedup is not None:
                    self._hooks.on_formed(self.members, self._speedup)
                return
        self._turn_away(member)

    def _turn_away(self, member: Member) -> None:
        self._hooks.on_out(member, self._trainer.begin(member, self._hooks.each).report())

    def _let_in(self, member: Member) -> None:
        turn = self._trainer.begin(member, self._hooks.each)
        self._turns.append(turn)
        self._first_epochs[member.name] = member.progress.epoch
        if member.is_done:
            self._end(turn)

    def _end(self, turn: MemberTurn) -> None:
        """End a member's turn; its own state is up to date."""
        turn.settle()
        self._remove(turn)
        self._hooks.on_out(turn.member, turn.report())

    def _fail(self, turn: MemberTurn, error: BaseException) -> None:
        self._num_failed += 1
        self._remove(turn)
        self._hooks.on_out(turn.member, turn.report(describe_failure(turn.member, error)))

    def _remove(self, turn: MemberTurn) -> None:
        self._turns.remove(turn)
        self._formation.leave(turn.member, is_settled=True)

    @contextmanager
    def _contained(self, turn: MemberTurn) -> Iterator[None]:
        """Let one member's failure end here; the others are untouched."""
        try:
            yield
        except (Exception, SystemExit) as error:
            if turn not in self._turns:
                raise
            self._fail(turn, error)

    # ---- steps

    def _go_on_alone(self) -> None:
        """Train the one member that is left as the trainer does, until somebody joins."""
        self._formation.dissolve()
        [turn] = self._turns

        def between_steps() -> bool:
            self._num_steps += 1
            self._is_stopping = self._hooks.each.between_steps()
            return self._is_stopping or bool(self._joining or self._leaving)

        self._is_alone = True
        with self._contained(turn):
            self._trainer.go_on(turn, between_steps, self._is_over)
        self._is_alone = False
        if turn in self._turns and turn.member.is_done:
            self._end(turn)

    def _step_together(self) -> None:
        self._step_all()
        self._num_steps += 1
        self._decide()
        if self._turns:
            self._is_stopping = self._hooks.each.between_steps()

    def _step_all(self) -> None:
        draws = [(turn, next(turn.member.order)) for turn in self._turns]
        sizes = Counter(len(index) for _, index in draws)
        size, is_even = max(sizes, key=lambda size: (sizes[size], size)), len(sizes) == 1
        if sizes[size] > 1 and self._goes_as_one(draws, is_even=is_even):
            self._step_as_one(draws, size)
        else:
            self._step_side_by_side(draws, is_even=is_even)

    def _goes_as_one(self, draws: Sequence[Draw], *, is_even: bool) -> bool:
        """Whether this step is made as one; forms the stack if need be, and says why if that cannot be."""
        if self._speedup is None and not self._probe.steps_as_one:
            return False
        if self._formation.is_formed:
            return True
        if not is_even:
            return False
        self._trainer.put_switches_back()
        try:
            if self._speedup is None and not self._probe.is_verified:
                check_equal(self.members, [index for _, index in draws])
                self._probe.is_verified = True
            self._formation.form(self.members)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, they train side by side instead
            self._refusal = one_line(error)
            return False
        if self._speedup is not None:
            self._hooks.on_formed(self.members, self._speedup)
        return True

    def _step_as_one(self, draws: Sequence[Draw], size: int) -> None:
        """Step those with batches of ``size`` as one; the others, with a short last batch, alone."""
        odd = [(turn, index) for turn, index in draws if len(index) != size]
        for turn, _ in odd:
            self._formation.settle(turn.member)
        self._trainer.put_switches_back()
        was_tuning = self._formation.is_tuning
        began = time.perf_counter()
        try:
            losses = self._formation.step([index if len(index) == size else None for _, index in draws])
        except (Exception, SystemExit) as error:  # noqa: BLE001 - one of them, or the stack: each alone will show
            self._disband(draws, error)
            return
        self._synchronize()
        seconds = time.perf_counter() - began
        if not (odd or was_tuning or self._speedup is not None):
            self._probe.note(seconds)
        for (turn, index), loss in zip(draws, losses, strict=True):
            if len(index) == size:
                with self._contained(turn):
                    self._note(turn, index, loss, seconds)
        for turn, index in odd:
            self._step_alone(turn, index)
            if turn in self._turns:
                self._take_back(turn.member)

    def _note(self, turn: MemberTurn, index: torch.Tensor, loss: torch.Tensor, seconds: float) -> None:
        member = turn.member
        if not self._trainer.reads_loss_lazily:
            check_finite(member, loss.item())
        turn.note(loss, len(index), seconds)
        ends_epoch = turn.ends_epoch
        if ends_epoch:
            self._formation.settle(member)
        self._finish_step(turn)
        if ends_epoch and turn in self._turns:
            self._take_back(member)  # its schedule may have changed its learning rate

    def _take_back(self, member: Member) -> None:
        """Let a member that is ahead of the stack step along again; if it cannot, they go on side by side."""
        try:
            self._formation.take(member)
        except NotStackableError as error:
            self._formation.leave(member, is_settled=True)
            self._refusal = one_line(error)

    def _step_side_by_side(self, draws: Sequence[Draw], *, is_even: bool) -> None:
        self._formation.settle_all()
        seconds = sum(self._step_alone(turn, index) for turn, index in draws)
        if is_even and self._speedup is None and not self._probe.steps_as_one:
            self._probe.note(seconds)

    def _step_alone(self, turn: MemberTurn, index: torch.Tensor) -> float:
        """Step a member that is up to date by itself and return the seconds of the step."""
        began = ended = time.perf_counter()
        with self._contained(turn):
            with self._in_place(turn.member):
                began = time.perf_counter()  # not before: what a change of members costs is the host's, not the step's
                turn.step_alone(index, began)
                self._synchronize()
                ended = time.perf_counter()
            self._finish_step(turn)
        return ended - began

    def _finish_step(self, turn: MemberTurn) -> None:
        """End the epoch if it is over, for which the member is up to date; tell the host; let it go if it is done."""
        if turn.ends_epoch:
            with self._in_place(turn.member):
                turn.end_epoch()
        turn.report_if_due()
        if turn.member.is_done:
            self._end(turn)

    @contextmanager
    def _in_place(self, member: Member) -> Iterator[None]:
        self._trainer.put_in_place(member)
        yield
        member.random = RandomState.capture(member.device)

    def _synchronize(self) -> None:
        """Wait for a GPU while steps are timed."""
        if self._speedup is None and self._trainer.device.type == "cuda":
            torch.cuda.synchronize(self._trainer.device)

    # ---- whether to step as one

    def _disband(self, draws: Sequence[Draw], error: BaseException) -> None:
        """Let each member step alone from where it stood: if none of them is the culprit, the stack is."""
        num_failed = self._num_failed
        self._formation.dissolve()
        self._step_side_by_side(draws, is_even=False)
        if self._num_failed == num_failed:
            self._refusal = one_line(error)

    def _decide(self) -> None:
        """See whether the probe is over, and probe again when so many have left that the answer may be another."""
        if self._refusal is not None:
            self._refuse(self._refusal, None)
        elif self._speedup is None and self._probe.is_over and len(self._turns) > 1:
            self._heed_probe(self._probe.speedup)
        elif self._speedup is not None and 1 < 2 * len(self._turns) <= self._size:
            self._speedup, self._probe, self._size = None, Probe(is_verified=True), len(self._turns)

    def _heed_probe(self, speedup: float) -> None:
        self._size = len(self._turns)
        if speedup > self._least_speedup:
            self._speedup = speedup
            self._hooks.on_formed(self.members, speedup)
        else:
            self._refuse("is not faster", speedup)

    def _refuse(self, reason: str, speedup: float | None) -> None:
        """Go on with the leader alone; the turn of its companions is over."""
        self._formation.dissolve()
        self._refusal, self._is_refused = None, True
        if self._turns:
            self._hooks.on_refused(self.members, reason, speedup)
        for turn in self._turns[1:]:
            with self._contained(turn):
                self._end(turn)
