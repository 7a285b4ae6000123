"""A stack that comes and goes while its members' turn lasts, and who is ahead of whom: the stack or the members themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unified.errors import NotStackableError
from unified.member import Member
from unified.stacked_members import StackedMembers, mismatch


class Formation:
    """The members' stack while there is one; without one, everything but forming it is a no-op."""

    def __init__(self) -> None:
        self._stack: StackedMembers | None = None
        self._members: list[Member] = []
        self._is_ahead = False

    @property
    def is_formed(self) -> bool:
        """Whether there is a stack."""
        return self._stack is not None

    @property
    def is_tuning(self) -> bool:
        """Whether the stack still finds out how it steps fastest."""
        return self._stack is not None and self._stack.is_tuning

    def form(self, members: Sequence[Member]) -> None:
        """Stack the members as they stand.

        Raises:
            NotStackableError: If they cannot step as one.
        """
        self._stack = StackedMembers(members)
        self._members, self._is_ahead = list(members), True

    def step(self, indices: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Step as one and return the losses; see :meth:`StackedMembers.step`."""
        assert self._stack is not None, "it was formed"
        if not self._is_ahead:
            for member in self._members:
                self._stack.take(member)
            self._is_ahead = True
        return self._stack.step(indices)

    def settle(self, member: Member) -> None:
        """Bring a member up to date."""
        if self._stack is not None and self._is_ahead:
            self._stack.settle(member)

    def settle_all(self) -> None:
        """Bring every member up to date: from now on they may step alone, and are taken again before the next step as one."""
        for member in self._members:
            self.settle(member)
        self._is_ahead = False

    def take(self, member: Member) -> None:
        """Go on from what a member holds, which was settled and has changed since."""
        if self._stack is not None and self._is_ahead:
            self._stack.take(member)

    def leave(self, member: Member, *, is_settled: bool) -> None:
        """Let a member go; up to date unless it ``is_settled`` already, or beyond help."""
        if self._stack is not None:
            self._stack.leave(member, settle=self._is_ahead and not is_settled)
            self._members.remove(member)

    def join(self, member: Member) -> None:
        """Let a member join.

        Raises:
            NotStackableError: If it cannot; the others are as they were.
        """
        if self._stack is not None:
            self._stack.join(member)
            self._members.append(member)

    def dissolve(self) -> None:
        """Bring every member up to date and give the stack up."""
        self.settle_all()
        self._stack, self._members = None, []


def check_equal(members: Sequence[Member], indices: Sequence[torch.Tensor]) -> None:
    """Compare a step as one with plain steps, on copies.

    Raises:
        NotStackableError: If they differ.
    """
    reason = mismatch(members, indices)
    if reason is not None:
        raise NotStackableError(f"a step as one differs: {reason}")
