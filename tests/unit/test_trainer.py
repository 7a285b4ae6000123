"""A member's turns against the plain loop: bit for bit, whatever the quanta and the company."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from schedulers.base import Epochs, Seconds, Steps, UntilDone
from tests.plain import train_alone
from unified.admission import DatasetRef, Estimate, ModelForm, ModelRef, Submission
from unified.checkpoint import restore_checkpoint, save_checkpoint
from unified.datasets import TensorData
from unified.errors import CheckpointError
from unified.hybrid import HybridModule
from unified.job import JobSpec
from unified.member import Member
from unified.stepping import Hooks
from unified.trainer import Trainer

CPU = torch.device("cpu")


class Net(nn.Module):
    """Convolution, BatchNorm and dropout: state that every kind of cross-talk would show in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.relu(self.norm(self.conv(x)))).flatten(1))


def make_data(n: int = 45, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 8, 8, generator=generator), torch.randint(3, (n,), generator=generator)


def make_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Net()


def make_job(name: str = "job", **changes: Any) -> dict[str, Any]:
    job = {
        "name": name,
        "model": "model.umodel",
        "data": {"train": "train.pt", "test": "test.pt"},
        "loss": "CrossEntropyLoss",
        "optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.9},
        "epochs": 3,
        "batch_size": 8,
        "seed": 3,
        "metrics": ["accuracy"],
    } | changes
    return {key: value for key, value in job.items() if value is not None}


def make_member(model: nn.Module, job: dict[str, Any], train: tuple[Any, Tensor], test: tuple[Any, Tensor] | None) -> Member:
    def ref(pair: tuple[Any, Tensor] | None) -> DatasetRef:
        assert pair is not None
        return DatasetRef(path=Path("x.pt"), key="0" * 64, num_samples=len(pair[1]), nbytes=0, source="x.pt")

    submission = Submission(
        spec=JobSpec.parse(job),
        folder=Path(),
        model=ModelRef(path=Path("m"), form=ModelForm.UMODEL, sha256="1" * 64),
        train=ref(train),
        test=None if test is None else ref(test),
        estimate=Estimate(num_parameters=0, resident_bytes=0, peak_bytes=0, flops_per_step=0, num_ops_per_step=0),
    )
    data = TensorData(inputs=train[0], targets=train[1])
    test_data = None if test is None else TensorData(inputs=test[0], targets=test[1])
    return Member(submission, model, data, test_data, CPU)


class Host:
    """A hybrid with a trainer, and every reported row and loss kept."""

    def __init__(self, *members: Member) -> None:
        self.hybrid = HybridModule()
        for member in members:
            self.hybrid.add(member.name, member.module)
        self.trainer = Trainer(self.hybrid, CPU, torch.get_num_threads())
        self.stop = False
        self.hooks = Hooks(between_steps=lambda: self.stop, on_progress=lambda *_: None, on_epoch=lambda *_: None)

    def turn(self, member: Member, quantum: Any = UntilDone()) -> Any:  # noqa: B008 - frozen and empty
        return self.trainer.run_turn(member, quantum, self.hooks)


def assert_same_weights(member: Member, expected: dict[str, Tensor]) -> None:
    got = member.module.state_dict()
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


def assert_same_rows(member: Member, expected: list[dict[str, float]]) -> None:
    rows = member.progress.rows
    assert len(rows) == len(expected)
    for row, reference in zip(rows, expected, strict=True):
        assert {name: row[name] for name in reference} == reference


JOBS = {
    "momentum": {},
    "adam_and_clipping": {"optimizer": {"name": "Adam", "lr": 0.01}, "clip_grad_norm": 0.5},
    "drop_last": {"drop_last": True},
    "epoch_schedule": {"lr_scheduler": {"name": "StepLR", "step_size": 1, "gamma": 0.5}},
    "step_schedule": {"lr_scheduler": {"name": "ExponentialLR", "gamma": 0.9, "every": "step"}},
    "plateau": {"lr_scheduler": {"name": "ReduceLROnPlateau", "patience": 0, "factor": 0.1}},
    "max_steps_inside_an_epoch": {"epochs": None, "max_steps": 8},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16", "clip_grad_norm": 1.0},
    "batch_of_one_left": {"batch_size": 11},
    "label_smoothing": {"loss": {"name": "CrossEntropyLoss", "label_smoothing": 0.1}, "optimizer": "AdamW"},
}


@pytest.mark.parametrize("changes", JOBS.values(), ids=JOBS.keys())
def test_a_member_ends_with_the_weights_and_metrics_of_the_plain_loop(changes: dict[str, Any]) -> None:
    job, train, test = make_job(**changes), make_data(), make_data(20, seed=1)
    weights, rows = train_alone(make_model(), job, train, test)
    member = make_member(make_model(), job, train, test)
    report = Host(member).turn(member)
    assert report.failure is None
    assert_same_weights(member, weights)
    assert_same_rows(member, rows)


@pytest.mark.parametrize("quantum", [Steps(count=1), Steps(count=5), Epochs(count=1), Seconds(count=0.004)])
def test_members_that_take_turns_do_not_touch_each_other(quantum: Any) -> None:
    jobs = [
        make_job("a"),
        make_job("b", seed=4, optimizer={"name": "Adam", "lr": 0.01}, batch_size=7),
        make_job("c", precision="bf16", seed=3, epochs=2),
    ]
    train, test = make_data(), make_data(20, seed=1)
    members = [make_member(make_model(seed), job, train, test) for seed, job in enumerate(jobs)]
    host = Host(*members)
    while any(not member.is_done for member in members):
        for member in members:
            if not member.is_done:
                assert host.turn(member, quantum).failure is None
    for seed, (job, member) in enumerate(zip(jobs, members, strict=True)):
        weights, rows = train_alone(make_model(seed), job, train, test)
        assert_same_weights(member, weights)
        assert_same_rows(member, rows)


@pytest.mark.parametrize("changes", JOBS.values(), ids=JOBS.keys())
@pytest.mark.parametrize("step", [1, 6, 7])
def test_a_checkpoint_at_any_step_goes_on_exactly(changes: dict[str, Any], step: int, tmp_path: Path) -> None:
    job, train, test = make_job(**changes), make_data(), make_data(20, seed=1)
    weights, rows = train_alone(make_model(), job, train, test)
    first = make_member(make_model(), job, train, test)
    Host(first).turn(first, Steps(count=step))
    assert save_checkpoint(first, tmp_path).step == step
    torch.rand(5)  # another process would be in another random state
    second = make_member(make_model(seed=99), job, train, test)
    assert restore_checkpoint(second, tmp_path) == step
    Host(second).turn(second)
    assert_same_weights(second, weights)
    assert_same_rows(second, rows)


@pytest.mark.parametrize("changes", JOBS.values(), ids=JOBS.keys())
def test_losses_summed_on_the_device_are_the_same(changes: dict[str, Any], tmp_path: Path) -> None:
    """What a GPU does, to keep steps from waiting: also across turns, and a checkpoint inside a turn."""
    job, train, test = make_job(**changes), make_data(), make_data(20, seed=1)
    _, rows = train_alone(make_model(), job, train, test)
    member = make_member(make_model(), job, train, test)
    host = Host(member)
    host.trainer.reads_loss_lazily = True
    saved: list[int] = []

    def checkpoint_once() -> bool:
        if member.progress.step == 4 and not saved:
            host.trainer.settle(member)
            saved.append(save_checkpoint(member, tmp_path))
        return False

    host.hooks = Hooks(between_steps=checkpoint_once, on_progress=lambda *_: None, on_epoch=lambda *_: None)
    for quantum in (Steps(count=3), Steps(count=4), UntilDone()):
        assert host.turn(member, quantum).failure is None
    assert_same_rows(member, rows)
    second = make_member(make_model(), job, train, test)
    assert restore_checkpoint(second, tmp_path) == 4
    other = Host(second)
    other.turn(second)
    assert_same_rows(second, rows)


def test_a_nan_is_found_when_losses_are_summed_on_the_device() -> None:
    inputs, targets = make_data()
    inputs[:] = math.nan
    member = make_member(make_model(), make_job(metrics=[]), (inputs, targets), None)
    host = Host(member)
    host.trainer.reads_loss_lazily = True
    assert "the loss became nan" in host.turn(member).failure.reason


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    job, train = make_job(), make_data()
    weights, _ = train_alone(make_model(), job, train, make_data(20, seed=1))
    member = make_member(make_model(), job, train, make_data(20, seed=1))
    host = Host(member)
    for _ in range(3):
        host.turn(member, Steps(count=2))
        save_checkpoint(member, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"000000-{step:012d}.{suffix}" for step in (4, 6) for suffix in ("json", "pt")
    ]
    newest = tmp_path / "000000-000000000006.pt"
    newest.write_bytes(newest.read_bytes()[:-7])
    other = make_member(make_model(seed=5), job, train, make_data(20, seed=1))
    assert restore_checkpoint(other, tmp_path) == 4
    Host(other).turn(other)
    assert_same_weights(other, weights)
    (tmp_path / "000000-000000000004.pt").unlink()
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        restore_checkpoint(other, tmp_path)


def test_a_checkpoint_of_another_job_is_refused(tmp_path: Path) -> None:
    train = make_data()
    member = make_member(make_model(), make_job(), train, None)
    save_checkpoint(member, tmp_path)
    other = make_member(make_model(), make_job(optimizer={"name": "SGD", "lr": 0.2}), train, None)
    with pytest.raises(CheckpointError, match="other hyper-parameters"):
        restore_checkpoint(other, tmp_path)


class Grumpy(Net):
    """Fails in its fifth forward."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.calls = 0
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 5:
            torch.manual_seed(1)
            torch.set_num_threads(1 + torch.get_num_threads() % 2)
            torch.set_grad_enabled(False)
            raise self.error
        return super().forward(x)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("no such luck"), "ValueError: no such luck at step 5 (epoch 1)"),
        (SystemExit(3), "SystemExit: 3 at step 5 (epoch 1)"),
        (torch.OutOfMemoryError("a lot"), "out of memory: a lot; lower batch_size (it is 8) at step 5 (epoch 1)"),
    ],
)
def test_what_a_member_raises_is_its_own_failure(error: BaseException, reason: str) -> None:
    train, test = make_data(), make_data(20, seed=1)
    weights, rows = train_alone(make_model(1), make_job("good"), train, test)
    threads = torch.get_num_threads()
    bad = make_member(Grumpy(error), make_job("bad"), train, test)
    good = make_member(make_model(1), make_job("good"), train, test)
    host = Host(bad, good)
    host.turn(good, Steps(count=4))
    report = host.turn(bad)
    assert report.failure.reason == reason
    assert "in forward" in report.failure.log
    host.turn(good)
    assert torch.get_num_threads() == threads
    assert_same_weights(good, weights)
    assert_same_rows(good, rows)


def test_a_wrong_target_shape_says_both_shapes() -> None:
    inputs, targets = make_data()
    member = make_member(make_model(), make_job(), (inputs, targets[:, None].repeat(1, 2)), None)
    failure = Host(member).turn(member).failure
    assert "CrossEntropyLoss refused output (8, 3) torch.float32, targets (8, 2) torch.int64" in failure.reason


def test_a_nan_loss_fails_before_it_reaches_the_weights_or_is_kept_on_request() -> None:
    inputs, targets = make_data()
    inputs[:] = math.nan
    job = make_job(metrics=[])
    member = make_member(make_model(), job, (inputs, targets), None)
    before = copy.deepcopy(dict(member.module.named_parameters()))
    assert "the loss became nan" in Host(member).turn(member).failure.reason
    for name, parameter in member.module.named_parameters():
        assert torch.equal(parameter, before[name])
    kept = make_member(make_model(), make_job(metrics=[], on_nan="keep"), (inputs, targets), None)
    assert Host(kept).turn(kept).failure is None
    assert kept.progress.step == 18


def test_early_stopping_ends_when_the_metric_no_longer_improves() -> None:
    train, test = make_data(), make_data(20, seed=1)
    job = make_job(epochs=50, early_stopping={"metric": "test_loss", "patience": 2})
    member = make_member(make_model(), job, train, test)
    Host(member).turn(member)
    losses = [row["test_loss"] for row in member.progress.rows]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 50
    weights, _ = train_alone(make_model(), make_job(epochs=len(losses)), train, test)
    assert_same_weights(member, weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["NAdam", "ASGD", "Adamax", "RAdam", "Adadelta", "Rprop"])
def test_a_checkpoint_keeps_every_bit_of_an_optimizer(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    inputs, targets = make_data()
    job, train = make_job(optimizer={"name": name}, metrics=[]), (inputs.to(dtype), targets)
    weights, _ = train_alone(make_model().to(dtype), job, train)
    first = make_member(make_model().to(dtype), job, train, None)
    Host(first).turn(first, Steps(count=5))
    save_checkpoint(first, tmp_path)
    second = make_member(make_model(seed=9).to(dtype), job, train, None)
    restore_checkpoint(second, tmp_path)
    assert Host(second).turn(second).failure is None
    assert_same_weights(second, weights)


def test_what_a_member_holds_between_turns_is_its_tensors() -> None:
    member = make_member(make_model(), make_job(max_steps=4, epochs=None), make_data(), None)
    weights = sum(weight.nbytes for weight in member.module.parameters())
    buffers = sum(buffer.nbytes for buffer in member.module.buffers())
    assert member.held_bytes == weights + buffers
    Host(member).turn(member, Steps(2))
    assert member.held_bytes == 3 * weights + buffers  # with gradients and momentum
