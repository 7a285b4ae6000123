"""The reference: each job trained alone by the loop that anyone would write in plain PyTorch.

``python -m benchmarks.plain_loop JOBFOLDER... --out DIR [--threads T]`` trains the jobs one after another
in this process, as the baselines of the benchmark do: with the ``nn.Module`` built from its class, and the initial
weights and tensor files of the job folder. In ``DIR/<job>`` each leaves ``began.json`` (when it began to train, and
with how many threads), ``metrics.json`` and, last, ``state_dict.pt``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Pair = tuple[Tensor, Tensor]
Trained = tuple[dict[str, Tensor], dict[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainJob:
    """A job as plain PyTorch sees it.

    Attributes:
        model: The eager module with its initial weights; it is trained in place.
        train: Inputs and targets, samples along the first axis.
        test: The same for testing after each epoch, or None.
        recipe: The fields of ``job.json``: loss, optimizer, lr_scheduler, epochs, batch_size, seed, ….
    """

    model: nn.Module
    train: Pair
    test: Pair | None
    recipe: Mapping[str, Any]


def train_alone(job: Path | PlainJob, threads: int | None = None) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train one job alone and return its final state dict and its metrics on the test set.

    Args:
        job: A job folder written by ``benchmarks.workloads``, or the job itself.
        threads: Intra-op threads for it; None: as they are.

    Returns:
        The state dict, in the model's own storage, and ``test_loss`` and the job's metrics after the last epoch.
    """
    loaded = read_job(job) if isinstance(job, Path) else job
    with _intra_op_threads(threads):
        metrics = _train(loaded)
    return dict(loaded.model.state_dict()), metrics


def read_job(folder: Path) -> PlainJob:
    """Read a job folder and its eager twin; data sets whole into memory, as plain scripts do."""
    from benchmarks.models import BUILDERS  # the loop itself serves jobs of any origin

    recipe = json.loads((folder / "job.json").read_text())
    eager = torch.load(folder.parent.parent / "eager" / f"{folder.name}.pt", weights_only=True)
    model = BUILDERS[eager["builder"]]()
    model.load_state_dict(eager["state_dict"])
    train = torch.load(folder / recipe["data"]["train"], weights_only=True)
    test = torch.load(folder / recipe["data"]["test"], weights_only=True)
    return PlainJob(model=model, train=train, test=test, recipe=recipe)


def _train(job: PlainJob) -> dict[str, float]:
    """Run the loop that co-training must equal, bit for bit."""
    recipe, model = job.recipe, job.model
    loss_fn = _component(nn, recipe["loss"])
    optimizer = _component(torch.optim, recipe["optimizer"], model.parameters())
    schedule, schedule_every = _schedule(recipe.get("lr_scheduler"), optimizer)
    clip_grad_norm = recipe.get("clip_grad_norm")
    metrics: dict[str, float] = {}

    torch.manual_seed(recipe.get("seed", 0))  # dropout and the like
    loader = DataLoader(
        TensorDataset(*job.train),
        batch_size=recipe["batch_size"],
        shuffle=True,
        drop_last=recipe.get("drop_last", False),
        generator=torch.Generator().manual_seed(recipe.get("seed", 0)),
    )
    model.train()
    for _ in range(recipe["epochs"]):
        for x, y in loader:
            optimizer.zero_grad(set_to_none=True)
            loss = loss_fn(model(x), y)
            loss.backward()
            if clip_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)
            optimizer.step()
            if schedule is not None and schedule_every == "step":
                schedule.step()
        if schedule is not None and schedule_every == "epoch":
            schedule.step()
        if job.test is not None:
            model.eval()
            metrics = evaluate(model, loss_fn, job.test, recipe)
            model.train()
    return metrics


@torch.no_grad()
def evaluate(model: nn.Module, loss_fn: nn.Module, test: Pair, recipe: Mapping[str, Any]) -> dict[str, float]:
    """Return ``test_loss`` (mean over samples), and accuracy and perplexity if the job asks for them."""
    # Batches are sliced: even an unshuffled DataLoader would draw a seed from the default generator.
    total_loss, num_right, num_targets = 0.0, 0, 0
    for x, y in zip(*(part.split(recipe["batch_size"]) for part in test), strict=True):
        output = model(x)
        total_loss += loss_fn(output, y).item() * len(y)
        if not y.is_floating_point():
            num_right += int((output.argmax(1) == y).sum())
            num_targets += y.numel()
    metrics = {"test_loss": total_loss / len(test[1])}
    if "accuracy" in recipe.get("metrics", ()):
        metrics["accuracy"] = num_right / num_targets
    if "perplexity" in recipe.get("metrics", ()):
        metrics["perplexity"] = math.exp(metrics["test_loss"])
    return metrics


def _component(module: Any, described: str | Mapping[str, Any], *arguments: Any) -> Any:
    """Build a class of PyTorch from its name, or from an object with its name and keyword arguments."""
    if isinstance(described, str):
        return getattr(module, described)(*arguments)
    keywords = {key: value for key, value in described.items() if key != "name"}
    return getattr(module, described["name"])(*arguments, **keywords)


def _schedule(described: str | Mapping[str, Any] | None, optimizer: torch.optim.Optimizer) -> tuple[Any, str]:
    """Return the LR schedule or None, and after what it is stepped."""
    if described is None:
        return None, "epoch"
    if isinstance(described, str):
        described = {"name": described}
    keywords = {key: value for key, value in described.items() if key != "every"}
    return _component(torch.optim.lr_scheduler, keywords, optimizer), described.get("every", "epoch")


@contextmanager
def _intra_op_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(folder: Path, out: Path) -> None:
    """Train one job folder as a baseline, results under ``out``."""
    job = read_job(folder)
    result = out / folder.name
    result.mkdir(parents=True, exist_ok=True)
    began = {"at": time.time(), "threads": torch.get_num_threads()}
    (result / "began.json").write_text(json.dumps(began))
    state_dict, metrics = train_alone(job)
    (result / "metrics.json").write_text(json.dumps(metrics))
    torch.save(state_dict, result / "state_dict.partial")
    (result / "state_dict.partial").rename(result / "state_dict.pt")  # there only when it is whole


def main(argv: list[str] | None = None) -> None:
    """Train the job folders named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="JOBFOLDER")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--threads", type=int, help="intra-op threads; torch's default without it")
    options = parser.parse_args(argv)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    for folder in options.folders:
        run(folder, options.out)


if __name__ == "__main__":
    main()
