"""Job folders, and an inspector that reads them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

import unified
from unified.messages import Inspect, Inspected
from unified.nursery import Nursery
from unified.read_limits import ReadLimits
from unified.slots import Reader


def write_job(
    folder: Path, model: nn.Module, inputs: Tensor, targets: Tensor, *, form: str = "umodel", **fields: object
) -> Path:
    """Write a job folder; further fields replace those of a plain job."""
    folder.mkdir(parents=True)
    torch.save((inputs, targets), folder / "train.pt")
    name = "model.umodel" if form == "umodel" else "model.pt"
    if form == "umodel":
        unified.export(model, inputs[:2], folder / name)
    else:
        torch.save(model, folder / name)
    job = {"name": folder.name, "model": name, "data": {"train": "train.pt"}, "loss": "CrossEntropyLoss", "optimizer": "SGD"}
    (folder / "job.json").write_text(json.dumps(job | {"epochs": 1, "batch_size": 4} | fields))
    return folder


def read(
    nursery: Nursery, *folders: Path, limits: ReadLimits | None = None, trust: bool = False, cache: Path | None = None
) -> list[Inspected]:
    """Read job folders, one after another, in one inspector; without ``cache`` what is known of data lies beside each."""
    requests = [
        Inspect(
            folder=folder,
            cache=cache or folder.parent / "cache",
            trust=trust,
            staged=False,
            device_type="cpu",
            num_threads=1,
            within_bytes=1 << 34,
            limits=limits or ReadLimits(),
            sandbox="off" if trust else "auto",
        )
        for folder in folders
    ]
    return [answers[0] for answers in Reader(nursery=nursery, num_processes=1).read(requests)]


def plain_job(folder: Path) -> Path:
    """Write a small job that is all right."""
    return write_job(folder, nn.Linear(4, 3), torch.randn(8, 4), torch.arange(8) % 3)
