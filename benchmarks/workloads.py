"""The jobs of the benchmark, and the folders in which they are handed in.

``python -m benchmarks.workloads --scale quick --out DIR [--data DIR]`` writes, for each mix::

    DIR/index.json              mixes, their jobs in order of submission, steps and own bytes
    DIR/<mix>/jobs/<job>/       job.json, model.umodel, train.pt, test.pt, as a user hands them in
    DIR/<mix>/eager/<job>.pt    the same model for plain PyTorch: builder and initial weights

Jobs on the same data each bring their own copy of it, as different users would.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import BUILDERS
from benchmarks.tensors import SETS, Split, TensorSet
from unified.submission.umodel_write import export

SEED = 1234
"""Initial weights and orders of samples: job i of a mix has seed SEED + i."""

Recipe = Mapping[str, Any]  # the fields of job.json: free-form by nature, checked by the reader of job.json


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much of the full work is done: a share of the epochs and of the samples, so many jobs of each mix."""

    epoch_share: float
    sample_share: float
    max_jobs: int = 8

    def epochs(self, full: int) -> int:
        """Return the number of epochs at this scale, at least one."""
        return max(1, round(full * self.epoch_share))

    def of(self, data: TensorSet) -> TensorSet:
        """Return the data at this scale, in storage of its own."""
        train, test = (self._first(split) for split in (data.train, data.test))
        return TensorSet(source=data.source, train=train, test=test)

    def _first(self, split: Split) -> Split:
        inputs, targets = split
        count = max(8, round(len(targets) * self.sample_share))
        return inputs[:count].clone(), targets[:count].clone()


SCALES = {
    "full": Scale(epoch_share=1.0, sample_share=1.0),
    "quick": Scale(epoch_share=0.2, sample_share=0.5),
    "tiny": Scale(epoch_share=0.05, sample_share=0.07, max_jobs=3),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One job: a model, its data and how it is trained (``epochs`` at full scale)."""

    name: str
    model: str
    data: str
    epochs: int
    recipe: Recipe


def _job(name: str, data: str, epochs: int, *, model: str | None = None, **recipe: Any) -> Workload:
    return Workload(name=name, model=model or name, data=data, epochs=epochs, recipe=recipe)


def _sgd(lr: float, **more: Any) -> dict[str, Any]:
    return {"name": "SGD", "lr": lr, "momentum": 0.9, **more}


def _step_lr(gamma: float) -> dict[str, Any]:
    return {"name": "StepLR", "step_size": 1, "gamma": gamma, "every": "epoch"}


_ADAM, _ADAMW = {"name": "Adam", "lr": 1e-3}, {"name": "AdamW", "lr": 1e-3}
_COSINE = {"name": "CosineAnnealingLR", "T_max": 180, "every": "step"}
_DECAYING_SGD = _sgd(0.01, weight_decay=5e-4)

VISION = (
    _job(
        "lenet",
        "fashion-lenet",
        10,
        batch_size=64,
        optimizer=_sgd(0.01),
        priority=0,
        lr_scheduler=_step_lr(0.7),
    ),
    _job("resnet18", "images-10", 10, batch_size=16, optimizer=_DECAYING_SGD, priority=1, lr_scheduler=_COSINE),
    _job("resnet50", "images-20", 10, batch_size=16, optimizer=_DECAYING_SGD, priority=2),
)
"""The paper's first mix: one long job dominates; its service times were 0.5 : 4.5 : 14.5 minutes."""

LANGUAGE = (
    _job("vgg-cbam", "fashion-vgg", 10, batch_size=32, optimizer=_sgd(0.01), priority=2),
    _job(
        "transformer-lm", "wikitext", 10, batch_size=10, optimizer={"name": "SGD", "lr": 0.5}, priority=0,
        clip_grad_norm=0.5, lr_scheduler=_step_lr(0.95), metrics=["perplexity"],
    ),
    _job(
        "bert", "sst-2", 10, batch_size=16, optimizer={"name": "Adam", "lr": 3e-4}, priority=1,
        clip_grad_norm=1.0,
    ),
)  # fmt: skip
"""The paper's second mix, vision with text; its service times were VGG 10.5, transformer 2, BERT 13 min."""

SMALL = (
    _job("conv-wide", "digits", 15, batch_size=32, optimizer=_sgd(0.02), priority=6),
    _job("mlp-small", "digits", 40, batch_size=32, optimizer=_sgd(0.1), priority=0),
    _job("encoder-small", "digits", 15, batch_size=32, optimizer=_ADAMW, priority=5),
    _job("mlp-deep", "digits", 30, batch_size=32, optimizer=_ADAM, priority=2),
    _job("conv-norm", "digits", 20, batch_size=32, optimizer=_sgd(0.05), priority=4),
    _job("encoder-wide", "digits", 15, batch_size=32, optimizer=_ADAMW, priority=7),
    _job("mlp-wide", "digits", 30, batch_size=32, optimizer=_ADAM, priority=3),
    _job("conv-small", "digits", 30, batch_size=32, optimizer=_sgd(0.05), priority=1),
)
"""Eight small models of different families on the same digits; shorter jobs have the more urgent priority."""

RESIDENT = _job("resident", "digits", 40, model="conv-norm", batch_size=32, optimizer=_ADAM)
NUM_RESIDENT = 8
"""Eight copies of one job, to measure what one more resident job costs in memory."""

MIXES = {"vision": VISION, "language": LANGUAGE, "small": SMALL, "resident": (RESIDENT,)}


def write(out: Path, mixes: Sequence[str], scale: str, data: Path | None) -> None:
    """Write the folders of ``mixes``, as many at a time as there are cores, and ``index.json``."""
    tasks = [(mix, number) for mix in mixes for number in range(len(MIXES[mix]))[: SCALES[scale].max_jobs]]
    # Exporting is the long part; spawned, because torch's threads do not survive a fork.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        entries = list(pool.map(write_job, *zip(*[(out, *task, scale, data) for task in tasks], strict=True)))
    index: dict[str, list[Recipe]] = {mix: [] for mix in mixes}
    for (mix, _), entry in zip(tasks, entries, strict=True):
        index[mix] += [entry] if mix != "resident" else copies(out / mix, entry)
    (out / "index.json").write_text(json.dumps(index, indent=2))


def write_job(out: Path, mix: str, number: int, scale: str, data: Path | None) -> Recipe:
    """Write the folder of one job of a mix, and its eager twin; return its entry in the index."""
    workload, seed = MIXES[mix][number], SEED + number
    tensors = SCALES[scale].of(SETS[workload.data](data))
    folder, eager = out / mix / "jobs" / workload.name, out / mix / "eager" / f"{workload.name}.pt"
    folder.mkdir(parents=True)
    eager.parent.mkdir(exist_ok=True)
    recipe: dict[str, Any] = {
        "name": workload.name, "model": "model.umodel", "data": {"train": "train.pt", "test": "test.pt"},
        "loss": "CrossEntropyLoss", "metrics": ["accuracy"], "epochs": SCALES[scale].epochs(workload.epochs),
        "seed": seed, **workload.recipe,
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(recipe, indent=2))
    torch.save(tensors.train, folder / "train.pt")
    torch.save(tensors.test, folder / "test.pt")
    torch.manual_seed(seed)
    model = BUILDERS[workload.model]()
    torch.save({"builder": workload.model, "state_dict": model.state_dict()}, eager)
    export(model, tensors.train[0][:4], folder / "model.umodel")
    steps_per_epoch = -(-len(tensors.train[1]) // recipe["batch_size"])
    return {
        "name": workload.name, "model": workload.model, "data": tensors.source, "seed": seed,
        "epochs": recipe["epochs"], "steps": recipe["epochs"] * steps_per_epoch,
        "parameters": sum(p.numel() for p in model.parameters()),
        "own_bytes": own_bytes(model, recipe["optimizer"]),
    }  # fmt: skip


def copies(mix: Path, entry: Recipe) -> list[Recipe]:
    """Hand in the job of ``entry`` as :data:`NUM_RESIDENT` jobs of other names and seeds; return their entries."""
    original = mix / "jobs" / entry["name"]
    recipe = json.loads((original / "job.json").read_text())
    entries: list[Recipe] = [{**entry, "name": f"{entry['name']}-{n}", "seed": SEED + n} for n in range(NUM_RESIDENT)]
    for each in entries:
        folder = original.with_name(each["name"])
        shutil.copytree(original, folder)
        changed = {**recipe, "name": each["name"], "seed": each["seed"]}
        (folder / "job.json").write_text(json.dumps(changed, indent=2))
    return entries


def own_bytes(model: torch.nn.Module, optimizer: Mapping[str, Any]) -> int:
    """Return the bytes of a job's parameters, gradients, buffers and optimizer state."""
    num_moments = 2 if optimizer["name"] in {"Adam", "AdamW"} else 1 if "momentum" in optimizer else 0
    copies = 2 + num_moments
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    return copies * parameters + sum(b.numel() * b.element_size() for b in model.buffers())


def main(argv: list[str] | None = None) -> None:
    """Write the job folders named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--mix", action="append", choices=MIXES, help="only this mix; may be given again")
    parser.add_argument("--data", type=Path)
    options = parser.parse_args(argv)
    write(options.out, options.mix or tuple(MIXES), options.scale, options.data)


if __name__ == "__main__":
    main()
