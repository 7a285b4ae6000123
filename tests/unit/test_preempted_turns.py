"""Turns that end early, at random steps, under every policy: bit for bit the plain loop, a stack within its tolerance."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from schedulers import base, registry
from tests.plain import train_alone
from tests.unit.stacks import StackHost, assert_equals_plain, make_stack
from tests.unit.test_trainer import assert_same_rows, assert_same_weights, make_data, make_job, make_member, make_model
from unified.member import Member

POLICIES = [
    "fcfs",
    "priority",
    "round-robin:quantum=7",
    "aging(srtf(quantum=5ms),weight=0.1)",
    "drr:quantum=3steps",
    "fair(las(quantum=5ms))",
    "edf:quantum=5ms",
]
EXAMPLES = settings(max_examples=5, deadline=None)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.4), nn.ReLU(), nn.Linear(16, 3))


JOBS: dict[str, dict[str, Any]] = {
    "conv": {},
    "conv-by-steps": {"lr_scheduler": {"name": "ExponentialLR", "gamma": 0.9, "every": "step"}, "batch_size": 7, "epochs": 2},
    "perceptron": {"optimizer": {"name": "Adam", "lr": 0.01}, "epochs": None, "max_steps": 15, "priority": 1},
    "bf16": {"precision": "bf16", "clip_grad_norm": 0.5, "epochs": 2, "priority": -1},
}


def make_one(name: str, seed: int) -> nn.Module:
    model = make_model(seed)
    return perceptron() if name == "perceptron" else model


@cache
def plain(name: str, seed: int) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    return train_alone(
        make_one(name, seed), make_job(name, seed=seed, **JOBS[name]), make_data(seed=seed), make_data(20, seed=9)
    )


class Run:
    """One slot's turns, as a policy decides them; every turn ends at its quantum, or earlier after a random number of steps."""

    def __init__(self, members: list[Member], policy: str, random: Random) -> None:
        self.host = StackHost(*members)
        self.scheduler = registry.create(policy)
        self.random = random
        self.now = 0.0
        self.sequence = 0
        for member in members:
            self.note(base.Submitted, member)

    def go_on(self) -> None:
        """Have one more turn."""
        views = [
            self.view(position, member) for position, member in enumerate(self.host.members.values()) if not member.is_done
        ]
        [grant] = self.scheduler.select(self.now, views, [base.SlotView(id=0)])
        member = self.host.members[grant.unit_id]
        self.steps_left = self.random.choice([1, 2, 5, 100])
        self.host.at_boundary = self.is_told_to_end
        self.host.run([member.name], grant.quantum)
        report = self.host.out[member.name]
        assert report.failure is None
        self.now += 1.0
        kind = base.TurnDone if self.steps_left else base.TurnCut
        self.note(base.Finished, member) if member.is_done else self.note(
            kind, member, steps=report.steps, seconds=report.seconds
        )

    def is_told_to_end(self) -> bool:
        self.steps_left -= 1
        return not self.steps_left

    def view(self, position: int, member: Member) -> base.JobView:
        steps = member.progress.step
        return base.JobView(
            id=member.name,
            submit_time=float(position),
            priority=member.spec.priority,
            num_parameters=sum(parameter.numel() for parameter in member.module.parameters()),
            steps_total=20,
            steps_done=steps,
            step_seconds=0.01 if steps else None,
            has_begun=steps > 0,
            slot_id=0,
        )

    def note(self, kind: type[base.Event], member: Member, **details: Any) -> None:
        self.sequence += 1
        if isinstance(self.scheduler, base.Observes):
            self.scheduler.on_event(kind(unit_id=member.name, sequence=self.sequence, **details))


@pytest.mark.parametrize("policy", POLICIES)
@EXAMPLES
@given(random=st.randoms(use_true_random=False), seed=st.integers(0, 2))
def test_members_whose_turns_end_early_equal_the_plain_loop(policy: str, random: Random, seed: int) -> None:
    members = [
        make_member(make_one(name, seed), make_job(name, seed=seed, **changes), make_data(seed=seed), make_data(20, seed=9))
        for name, changes in JOBS.items()
    ]
    run = Run(members, policy, random)
    while not all(member.is_done for member in members):
        run.go_on()
    for member in members:
        weights, rows = plain(member.name, seed)
        assert_same_weights(member, weights)
        assert_same_rows(member, rows)


STACK: list[dict[str, Any]] = [
    {},
    {"lr_scheduler": {"name": "StepLR", "step_size": 1, "gamma": 0.5}, "epochs": 4},
    {"optimizer": {"name": "SGD", "lr": 0.2, "momentum": 0.5}, "clip_grad_norm": 0.5, "epochs": 2},
]


@EXAMPLES
@given(steps=st.lists(st.integers(1, 9), min_size=1, max_size=9), are_measured=st.booleans())
def test_a_stack_whose_turns_end_early_equals_the_plain_loop(steps: list[int], are_measured: bool) -> None:
    host = StackHost(*make_stack(STACK))
    turns = iter(steps * 30)
    while names := [name for name, member in host.members.items() if not member.is_done]:
        left = iter(range(next(turns) - 1, -1, -1))
        host.at_boundary = lambda left=left: not next(left)
        host.run(names, speedup=None if are_measured else 2.0)
    for member, changes in zip(host.members.values(), STACK, strict=True):
        assert_equals_plain(member, changes)
