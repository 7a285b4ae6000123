"""The jobs of the fault benchmark, written as their owners hand them in. Imports torch, so it is run as a process of its own.

``python -m benchmarks.storm_jobs --out DIR [--epoch-share X]`` writes job folders, each with its own model and data::

    DIR/storm/<spec>/    small real models on scikit-learn's digits, to be killed and compared bit for bit
    DIR/crash/           a model that ends its process at a given step, with code of its own
    DIR/beside/          what trains beside it
    DIR/cost/<spec>/     a small and a large state, for the cost of checkpoints
    DIR/small/           next to nothing: what a queue is filled with
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.crash_model import CrashesAt
from benchmarks.models import BUILDERS, digit_mlp
from benchmarks.tensors import Split, digits
from unified.submission.umodel_write import export

NUM_TRAIN, NUM_TEST = 512, 128
SEEDS = (11, 12, 13)
CRASH_STEP = 600

_SGD = {"name": "SGD", "lr": 0.02, "momentum": 0.9}
_ADAM, _ADAMW = {"name": "Adam", "lr": 1e-3}, {"name": "AdamW", "lr": 1e-3}
_DECAY = {"name": "StepLR", "step_size": 1, "gamma": 0.98, "every": "epoch"}

STORM: Mapping[str, Mapping[str, Any]] = {
    "conv-norm": {"epochs": 60, "optimizer": _SGD, "lr_scheduler": _DECAY},
    "mlp-deep": {"epochs": 160, "optimizer": _ADAM},
    "encoder-small": {"epochs": 40, "optimizer": _ADAMW, "lr_scheduler": _DECAY},
    "conv-wide": {"epochs": 45, "optimizer": _SGD, "clip_grad_norm": 1.0},
}
"""Models with batch norm, dropout, attention and moments: each has other state that a checkpoint must not forget."""

COST_EPOCHS = {"conv-norm": 3500, "mlp-large": 300}
"""A state of 100 KB and one of 50 MB, which train for about two minutes on a core each."""


def write_all(out: Path, epoch_share: float, cost_share: float, num_seeds: int) -> None:
    """Write every folder: the storm's jobs with a share of their epochs and so many seeds, those for the cost likewise."""
    data = digits()
    train, test = (_first(data.train, NUM_TRAIN), _first(data.test, NUM_TEST))
    for name, recipe in STORM.items():
        for seed in SEEDS[:num_seeds]:
            epochs = max(1, round(recipe["epochs"] * epoch_share))
            _write(out / "storm" / f"{name}-{seed}", name, (train, test), {**recipe, "epochs": epochs, "seed": seed})
    beside = {"epochs": 4000, "optimizer": _ADAM, "seed": 1}
    _write(out / "beside", "mlp-deep", (train, test), beside)
    crash = {"epochs": 4000, "optimizer": _SGD, "seed": 2, "max_retries": 2}
    _describe(out / "crash", (train, test), crash | {"model": "model.pth"})
    torch.save(CrashesAt(step=CRASH_STEP), out / "crash" / "model.pth")
    few = _first(train, 64), _first(test, 16)
    for name, epochs in COST_EPOCHS.items():
        recipe = {"epochs": max(1, round(epochs * cost_share)), "optimizer": _ADAM, "seed": 3}
        _write(out / "cost" / name, name, (train, test), recipe)
    _write(out / "small", "mlp-small", few, {"epochs": 1, "optimizer": _SGD, "seed": 4})


def _first(split: Split, count: int) -> Split:
    return split[0][:count].clone(), split[1][:count].clone()


def _write(folder: Path, model: str, data: tuple[Split, Split], recipe: Mapping[str, Any]) -> None:
    _describe(folder, data, recipe)
    torch.manual_seed(recipe["seed"])
    module = digit_mlp(hidden=(2048, 2048)) if model == "mlp-large" else BUILDERS[model]()
    export(module, data[0][0][:4], folder / "model.umodel")


def _describe(folder: Path, data: tuple[Split, Split], recipe: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True)
    content = {
        "name": folder.name, "model": "model.umodel", "data": {"train": "train.pt", "test": "test.pt"},
        "loss": "CrossEntropyLoss", "metrics": ["accuracy"], "batch_size": 32, **recipe,
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(content, indent=1))
    for name, split in zip(("train", "test"), data, strict=True):
        torch.save(split, folder / f"{name}.pt")


def main() -> None:
    """Write the job folders named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epoch-share", type=float, default=1.0, help="of the storm's epochs")
    parser.add_argument("--cost-share", type=float, default=1.0, help="of the epochs of the jobs that measure checkpoints")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="of each model of the storm")
    options = parser.parse_args()
    write_all(options.out, options.epoch_share, options.cost_share, options.seeds)


if __name__ == "__main__":
    main()
