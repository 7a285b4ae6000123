"""A host of stacked turns for tests: who joins, what is told, and the plain loop to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from schedulers.base import Quantum, UntilDone
from tests.plain import train_alone
from tests.unit.test_trainer import CPU, make_data, make_job, make_member, make_model
from unified.hybrid import HybridModule
from unified.member import Member
from unified.stack_probe import Probe
from unified.stack_trainer import StackHooks, StackTerms, StackTurn
from unified.stepping import Hooks, TurnReport
from unified.trainer import Trainer

#: What steps as one may differ by from the plain loop in float32: rounding in another order, over some thirty steps.
TOLERANCE = 1e-4


class StackHost:
    """A hybrid and its trainer, and everything that was told of its turns."""

    def __init__(self, *members: Member) -> None:
        self.hybrid = HybridModule()
        self.members = {member.name: member for member in members}
        for member in members:
            self.hybrid.add(member.name, member.module)
        self.trainer = Trainer(self.hybrid, CPU, torch.get_num_threads())
        self.out: dict[str, TurnReport] = {}
        self.left: list[str] = []
        self.formed: list[tuple[str, ...]] = []
        self.refused: list[tuple[tuple[str, ...], str, float | None]] = []
        self.at_boundary: Callable[[], bool] = lambda: False
        self.turn: StackTurn | None = None

    def run(
        self,
        names: Sequence[str] | None = None,
        quantum: Quantum = UntilDone(),  # noqa: B008 - frozen and empty
        *,
        speedup: float | None = 2.0,
        least_speedup: float = 0.0,
        probe: Probe | None = None,
    ) -> None:
        """Run one turn; with a ``speedup`` the stack is taken for faster, without one it is measured."""
        terms = StackTerms(least_speedup=least_speedup, speedup=speedup, probe=probe)
        self.turn = StackTurn(self.trainer, quantum, self._hooks(), terms)
        for name in names or self.members:
            self.turn.join(self.members[name])
        self.turn.run()

    def _hooks(self) -> StackHooks:
        each = Hooks(between_steps=lambda: self.at_boundary(), on_progress=lambda *_: None, on_epoch=lambda *_: None)
        return StackHooks(
            each=each,
            on_out=lambda member, report: self.out.update({member.name: report}),
            on_left=lambda member: self.left.append(member.name),
            on_formed=lambda members, _: self.formed.append(tuple(member.name for member in members)),
            on_refused=lambda members, reason, speedup: self.refused.append(
                (tuple(member.name for member in members), reason, speedup)
            ),
        )


def make_stack(jobs: Sequence[dict[str, Any]], sizes: Sequence[int] | None = None) -> list[Member]:
    """Return a member for each job's changes, named ``m0``, ``m1``, …, with as many samples as ``sizes`` says."""
    members = []
    for number, changes in enumerate(jobs):
        data = make_data((sizes or [45] * len(jobs))[number], seed=number)
        job = make_job(name=f"m{number}", seed=number, **changes)
        members.append(make_member(make_model(number), job, data, make_data(20, seed=100)))
    return members


def assert_equals_plain(member: Member, changes: dict[str, Any], size: int = 45) -> None:
    """Compare a finished member with the plain loop."""
    number = int(member.name[1:])
    job = make_job(name=member.name, seed=number, **changes)
    weights, rows = train_alone(make_model(number), job, make_data(size, seed=number), make_data(20, seed=100))
    got = member.module.state_dict()
    assert list(got) == list(weights)
    for name, value in weights.items():
        torch.testing.assert_close(got[name], value, rtol=TOLERANCE, atol=TOLERANCE)
    assert len(member.progress.rows) == len(rows)
    for row, reference in zip(member.progress.rows, rows, strict=True):
        for name, value in reference.items():
            torch.testing.assert_close(row[name], value, rtol=TOLERANCE, atol=TOLERANCE)
