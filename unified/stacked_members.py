"""The members of one stack while they step as one: here one after another, exactly; the reference of every other way."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from unified.errors import NotStackableError
from unified.hybrid import HybridModule
from unified.member import Member
from unified.random_state import RandomState
from unified.stepping import step


class StackedMembers:
    """The members of one stack while they step as one.

    Each member keeps its own module, optimizer, schedule, order and random state; the stack may hold copies, and brings a
    member up to date on demand.

    Args:
        members: Who steps together, in the order of the stack.

    Raises:
        NotStackableError: If they cannot; the message says why.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        if any(member.spec.precision != "fp32" for member in members):
            raise NotStackableError("only fp32 members step as one")
        self._members = list(members)

    def step(self, indices: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Do one optimizer step of every member on its own batch, without touching anybody's progress.

        Args:
            indices: A batch of equal size for each member, int64 ``(batch,)``; None for one that sits this step out. It was
                settled before and will be taken or leave after it, so whatever the stack held of it need not survive.

        Returns:
            The detached losses, shape ``(members,)``; anything for those that sat out.

        Raises:
            Exception: Whatever a member's own code raises; all members stand as before the step then.
        """
        before = [copy.deepcopy(member.state_dict()) for member in self._members]
        try:
            losses = [self._step(member, index) for member, index in zip(self._members, indices, strict=True)]
        except (Exception, SystemExit):
            for member, state in zip(self._members, before, strict=True):
                _put_back(member, state)
            raise
        return torch.stack(losses)

    def settle(self, member: Member) -> None:
        """Bring the member's own module, optimizer and random state up to date; it stays in the stack."""

    def take(self, member: Member) -> None:
        """Go on from what the member itself holds: it has stepped alone, or its learning rate has changed, meanwhile."""

    def leave(self, member: Member, *, settle: bool = True) -> None:
        """Let the member go, up to date if ``settle``."""
        self._members.remove(member)

    def join(self, member: Member) -> None:
        """Let a member join, last in order.

        Raises:
            NotStackableError: If it cannot; the others are as they were.
        """
        self._members.append(member)

    def _step(self, member: Member, index: torch.Tensor | None) -> torch.Tensor:
        if index is None:
            return torch.tensor(torch.nan, device=member.device)
        hybrid = HybridModule()
        hybrid.add(member.name, member.module)
        member.random.restore()
        loss = step(hybrid, member, index, is_lazy=True)
        member.random = RandomState.capture(member.device)
        return loss


def mismatch(members: Sequence[Member], indices: Sequence[torch.Tensor]) -> str | None:
    """Compare a step as one with plain steps, on copies; say what differs, or None. Here both are the same."""
    return None


def _put_back(member: Member, state: dict[str, Any]) -> None:
    member.optimizer.state.clear()
    member.load_state_dict(state)
