"""Small batches of jobs for the engine's tests, as Python objects and as job folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import unified
from tests.plain import train_alone

Pair = tuple[Tensor, Tensor]


class Conv(nn.Module):
    """Convolution, BatchNorm, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(144, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


class Recurrent(nn.Module):
    """An LSTM over the rows of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 12, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.squeeze(1))[0][:, -1])


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def make_data(n: int = 45, seed: int = 0) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 8, 8, generator=generator), torch.randint(3, (n,), generator=generator)


TRAIN, TEST = make_data(), make_data(20, seed=1)

#: name -> model and what its job says beside the common fields
MEMBERS: dict[str, tuple[type[nn.Module] | Any, dict[str, Any]]] = {
    "conv": (
        Conv,
        {"optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.9}, "epochs": 3, "seed": 1, "priority": 1},
    ),
    "mlp": (
        perceptron,
        {
            "optimizer": {"name": "Adam", "lr": 0.01},
            "lr_scheduler": {"name": "ExponentialLR", "gamma": 0.9, "every": "step"},
            "epochs": 2,
            "clip_grad_norm": 0.5,
            "batch_size": 7,
        },
    ),
    "lstm": (
        Recurrent,
        {
            "optimizer": "AdamW",
            "lr_scheduler": {"name": "StepLR", "step_size": 1},
            "epochs": 4,
            "drop_last": True,
            "priority": 1,
        },
    ),
    "conv-again": (
        Conv,
        {"optimizer": {"name": "RMSprop", "lr": 0.001}, "max_steps": 14, "seed": 2, "precision": "bf16"},
    ),
}


def make_model(name: str) -> nn.Module:
    torch.manual_seed(sorted(MEMBERS).index(name))
    return MEMBERS[name][0]()


def describe(member: str, **changes: Any) -> dict[str, Any]:
    common = {"loss": "CrossEntropyLoss", "batch_size": 8, "seed": 0, "metrics": ["accuracy"]}
    return common | MEMBERS[member][1] | {"name": member} | changes


def make_spec(member: str, **changes: Any) -> unified.JobSpec:
    return unified.JobSpec(model=make_model(member), data={"train": TRAIN, "test": TEST}, **describe(member, **changes))


def write_folders(root: Path, names: list[str] | None = None, **changes: Any) -> Path:
    """Write job folders with ``.umodel`` files and one shared dataset and return the folder that holds them."""
    (root / "data").mkdir(parents=True)
    torch.save(TRAIN, root / "data" / "train.pt")
    torch.save(TEST, root / "data" / "test.pt")
    for name in names or MEMBERS:
        write_folder(root / name, make_model(name), describe(name, **changes))
    return root


def write_folder(folder: Path, model: nn.Module, job: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    unified.export(model, TRAIN[0][:2], folder / "model.umodel")
    data = {"train": "../data/train.pt", "test": "../data/test.pt"}
    (folder / "job.json").write_text(json.dumps({"model": "model.umodel", "data": data} | job))
    return folder


def alone(name: str, threads: int = 1, **changes: Any) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Return what the plain loop makes of the member, with ``threads`` intra-op threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return train_alone(make_model(name), describe(name, **changes), TRAIN, TEST)
    finally:
        torch.set_num_threads(before)


def assert_equals_alone(result: unified.Result, name: str | None = None, **changes: Any) -> None:
    """Check weights, buffers, their order and the last row of metrics, bit for bit."""
    assert str(result.state) == "finished", result.reason
    weights, rows = alone(name or result.name, result.num_threads or 1, **changes)
    assert list(result.state_dict) == list(weights)
    for key, value in weights.items():
        assert torch.equal(result.state_dict[key], value), (result.name, key)
    assert {key: result.metrics[key] for key in rows[-1]} == rows[-1]
