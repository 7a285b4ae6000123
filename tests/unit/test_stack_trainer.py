"""Turns of several members as one, against the plain loop: whatever their lengths, and whoever comes and goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import unified.formation
from schedulers.base import Epochs, Quantum, Seconds, Steps
from tests.unit.stacks import StackHost, assert_equals_plain, make_stack
from tests.unit.test_trainer import Net, make_data, make_job, make_member, make_model
from unified.checkpoint import restore_checkpoint, save_checkpoint
from unified.errors import NotStackableError
from unified.stack_probe import BLOCK, NUM_WARM, Probe
from unified.stacked_members import StackedMembers

DIFFERENT: list[dict[str, Any]] = [
    {},
    {"optimizer": {"name": "SGD", "lr": 0.2, "momentum": 0.5}, "clip_grad_norm": 0.5, "epochs": 5},
    {"lr_scheduler": {"name": "StepLR", "step_size": 1, "gamma": 0.5}, "epochs": 4},
    {"lr_scheduler": {"name": "ExponentialLR", "gamma": 0.9, "every": "step"}, "epochs": None, "max_steps": 11},
    {"lr_scheduler": {"name": "ReduceLROnPlateau", "patience": 0, "factor": 0.1}, "drop_last": True},
]
SIZES = [45, 61, 40, 33, 50]


@pytest.mark.parametrize("speedup", [2.0, None])
@pytest.mark.parametrize("sizes", [[45] * 5, SIZES])
def test_each_member_of_a_stack_ends_as_if_it_had_trained_alone(sizes: list[int], speedup: float | None) -> None:
    host = StackHost(*make_stack(DIFFERENT, sizes))
    host.run(speedup=speedup)
    assert not host.refused
    assert all(report.failure is None for report in host.out.values())
    for member, changes, size in zip(host.members.values(), DIFFERENT, sizes, strict=True):
        assert host.out[member.name].steps == member.progress.step
        assert_equals_plain(member, changes, size)


@pytest.mark.parametrize("quantum", [Steps(count=3), Epochs(count=1), Seconds(count=0.01)])
def test_turns_of_any_length_leave_no_trace(quantum: Quantum) -> None:
    host = StackHost(*make_stack(DIFFERENT, SIZES))
    while names := [name for name, member in host.members.items() if not member.is_done]:
        host.run(names, quantum)
        for name in names:
            assert host.members[name].is_done or not isinstance(quantum, Steps) or host.out[name].steps == 3
    for member, changes, size in zip(host.members.values(), DIFFERENT, SIZES, strict=True):
        assert_equals_plain(member, changes, size)


def test_early_stopping_ends_one_member_and_the_others_go_on() -> None:
    stopping = {"early_stopping": {"metric": "test_loss", "patience": 1, "min_delta": 10.0}, "epochs": 9}
    members = make_stack([{}, stopping, {}])
    host = StackHost(*members)
    host.run()
    assert members[1].progress.is_stopped
    assert members[1].progress.epoch == 2
    assert_equals_plain(members[0], {})
    assert_equals_plain(members[2], {})


def test_a_member_whose_loss_is_not_finite_fails_alone() -> None:
    exploding = {"optimizer": {"name": "SGD", "lr": 1e30}}
    members = make_stack([{}, exploding, exploding | {"on_nan": "keep"}, {}])
    host = StackHost(*members)
    host.run()
    failure = host.out["m1"].failure
    assert failure is not None
    assert "the loss became" in failure.reason
    assert host.out["m2"].failure is None
    assert members[2].is_done
    assert_equals_plain(members[0], {})
    assert_equals_plain(members[3], {})


def test_losses_that_are_read_lazily_fail_the_member_that_explodes_alone() -> None:
    members = make_stack([{}, {"optimizer": {"name": "SGD", "lr": 1e30}}, {}])
    host = StackHost(*members)
    host.trainer.reads_loss_lazily = True
    host.run()
    assert host.out["m1"].failure is not None
    assert_equals_plain(members[0], {})
    assert_equals_plain(members[2], {})


def failing_member(number: int) -> Any:
    """Return a member whose loss raises at the one sample with a class that there is not."""
    inputs, targets = make_data(seed=number)
    targets[17] = 7
    return make_member(make_model(number), make_job(name=f"m{number}", seed=number), (inputs, targets), make_data(20, seed=100))


def test_a_member_that_raises_fails_alone_and_the_others_step_as_one_again() -> None:
    members = make_stack([{}, {}, {}])
    members[1] = failing_member(1)
    host = StackHost(*members)
    host.run()
    assert host.out["m1"].failure is not None
    assert "out of bounds" in host.out["m1"].failure.reason
    assert not host.refused
    assert host.formed[-1] == ("m0", "m2")
    assert_equals_plain(members[0], {})
    assert_equals_plain(members[2], {})


def test_a_stack_that_fails_by_itself_is_refused_and_no_batch_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    step = StackedMembers.step

    def fail(self: StackedMembers, indices: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise torch.OutOfMemoryError("tried to allocate 8 TiB")
        return step(self, indices)

    monkeypatch.setattr(StackedMembers, "step", fail)
    members = make_stack([{}, {}, {}])
    host = StackHost(*members)
    host.run()
    assert host.refused == [(("m0", "m1", "m2"), "OutOfMemoryError: tried to allocate 8 TiB", None)]
    assert_equals_plain(members[0], {})
    assert not members[1].is_done
    assert host.out["m1"].steps == 4
    host.run(["m1"])
    host.run(["m2"])
    assert_equals_plain(members[1], {})
    assert_equals_plain(members[2], {})


@pytest.mark.parametrize("least_speedup", [0.0, 1e9])
def test_the_probe_steps_both_ways_and_decides(least_speedup: float) -> None:
    jobs = [{"epochs": 20}, {"epochs": 20}, {"epochs": 20}]
    members = make_stack(jobs)
    host = StackHost(*members)
    host.run(speedup=None, least_speedup=least_speedup)
    if least_speedup:
        [(names, reason, speedup)] = host.refused
        assert (names, reason) == (("m0", "m1", "m2"), "is not faster")
        assert speedup is not None
        assert host.out["m1"].steps >= 2 * (NUM_WARM + BLOCK)
        host.run(["m1"])
        host.run(["m2"])
    else:
        assert host.formed == [("m0", "m1", "m2")]
    for member, changes in zip(members, jobs, strict=True):
        assert_equals_plain(member, changes)


def test_a_probe_goes_on_over_short_turns() -> None:
    members = make_stack([{"epochs": 20}, {"epochs": 20}])
    host, probe = StackHost(*members), Probe()
    while not host.formed:
        host.run(quantum=Steps(count=2), speedup=None, probe=probe)
    assert len(probe.stacked) == len(probe.side_by_side) >= BLOCK
    host.run()
    for member in members:
        assert_equals_plain(member, {"epochs": 20})


def test_a_stack_that_differs_from_plain_steps_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unified.formation, "mismatch", lambda *_: "head.weight by 0.5")
    host = StackHost(*make_stack([{}, {}]))
    host.run(speedup=None)
    assert host.refused == [(("m0", "m1"), "a step as one differs: head.weight by 0.5", None)]
    assert host.out["m1"].steps == NUM_WARM + 1
    assert_equals_plain(host.members["m0"], {})


def test_members_that_cannot_be_stacked_go_on_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: StackedMembers, members: Any) -> None:
        raise NotStackableError("an LSTM cannot")

    monkeypatch.setattr(StackedMembers, "__init__", refuse)
    host = StackHost(*make_stack([{}, {}]))
    host.run()
    assert host.refused == [(("m0", "m1"), "an LSTM cannot", None)]
    assert_equals_plain(host.members["m0"], {})
    host.run(["m1"])
    assert_equals_plain(host.members["m1"], {})


@pytest.mark.parametrize("alone", [False, True])
def test_members_join_and_leave_at_step_boundaries(alone: bool, tmp_path: Path) -> None:
    jobs = [{"epochs": 5}, {"epochs": 6}, {}]
    members = make_stack(jobs)
    host = StackHost(*members)

    def boundary() -> bool:
        assert host.turn is not None
        if members[0].progress.step == 7 and not members[2].progress.step:
            host.turn.join(members[2])
        if members[0].progress.step == 11 and not host.left:
            assert host.turn.settle(members[0])
            save_checkpoint(members[0], tmp_path)
            host.turn.leave(members[0])
            assert host.turn.is_in(members[0])
        return False

    host.at_boundary = boundary
    host.run(["m0"] if alone else ["m0", "m1"])
    assert host.left == ["m0"]
    assert members[0].progress.step == 11
    again = make_stack(jobs)[0]
    assert restore_checkpoint(again, tmp_path) == 11
    second = StackHost(again)
    second.run()
    for member in (again, *([] if alone else [members[1]]), members[2]):
        assert_equals_plain(member, jobs[int(member.name[1:])])


def test_checkpoints_inside_a_stacked_turn_are_exact(tmp_path: Path) -> None:
    members = make_stack(DIFFERENT, SIZES)
    host = StackHost(*members)

    def boundary() -> bool:
        assert host.turn is not None
        for member in host.turn.members:
            if member.progress.step in {5, 9}:
                assert host.turn.settle(member)
                save_checkpoint(member, tmp_path / member.name)
        return False

    host.at_boundary = boundary
    host.run()
    for number, restored in enumerate(make_stack(DIFFERENT, SIZES)):
        assert restore_checkpoint(restored, tmp_path / restored.name) == 9
        StackHost(restored).run()
        assert_equals_plain(restored, DIFFERENT[number], SIZES[number])


def test_a_turn_that_is_stopped_ends_for_all_and_who_wants_to_join_is_turned_away() -> None:
    members = make_stack([{}, {}, {}])
    host = StackHost(*members)

    def boundary() -> bool:
        assert host.turn is not None
        if members[0].progress.step == 4:
            host.turn.join(members[2])
            return True
        return False

    host.at_boundary = boundary
    host.run(["m0", "m1"])
    assert {name: report.steps for name, report in host.out.items()} == {"m0": 4, "m1": 4, "m2": 0}
    host.at_boundary = lambda: False
    host.run()
    for member in members:
        assert_equals_plain(member, {})


def test_a_stack_that_has_shrunk_by_half_is_measured_again() -> None:
    jobs = [{"epochs": 30}, {"epochs": 30}, {"epochs": 1}, {"epochs": 1}]
    host = StackHost(*make_stack(jobs))
    host.run()
    assert host.formed[0] == ("m0", "m1", "m2", "m3")
    assert host.formed[-1] == ("m0", "m1")
    for member, changes in zip(host.members.values(), jobs, strict=True):
        assert_equals_plain(member, changes)


class Meddling(Net):
    """Seeds the process's generator in every forward: alone its dropout would draw the same masks each time."""

    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(5)
        return super().forward(x)


def test_members_that_meddle_with_the_process_are_not_stacked() -> None:
    members = [
        make_member(Meddling(), make_job(name=f"m{number}"), make_data(seed=number), make_data(20)) for number in range(3)
    ]
    host = StackHost(*members)
    host.run(speedup=None)
    [(names, reason, _)] = host.refused
    assert names == ("m0", "m1", "m2")
    assert "differs" in reason
    assert host.members["m0"].is_done


class Counting(Net):
    """Keeps a state of its own beside its buffers, on which its training forward depends."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += self.training
        return super().forward(x) * (1 + 0.01 * (self.calls[0] % 7))


def test_members_whose_forward_keeps_a_state_of_its_own_are_not_stacked() -> None:
    members = []
    for number in range(3):
        torch.manual_seed(number)
        members.append(make_member(Counting(), make_job(name=f"m{number}"), make_data(seed=number), make_data(20)))
    host = StackHost(*members)
    host.run(speedup=None)
    [(names, reason, _)] = host.refused
    assert names == ("m0", "m1", "m2")
    assert "keeps a state of its own" in reason
    assert all(report.failure is None for report in host.out.values())
