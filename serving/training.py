"""Training networks of several tasks on the weighted sum of their losses (MTLsys, section 4.2).

Who trains is given from outside: :func:`train_plainly` one job after another, the co-training engine all of them at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader

from serving.data import TaskData
from serving.records import TaskSpec
from serving.tasks import weighted_sum


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainJob:
    """One network to be trained, in place.

    Attributes:
        name: Unique among the jobs that are trained together.
        network: Takes the data's inputs by position and gives ``{task: tensor}``.
        tasks: What it is trained for; the loss is the weighted sum of theirs.
        data: Samples with labels of these tasks, perhaps of others too.
        epochs: Passes over the data, >= 0; 0 leaves the network as it is.
        batch_size: Samples of a step, >= 1. Each pass draws a new order; a last batch of one sample is left out, since
            BatchNorm cannot take it.
        optimizer: A class of ``torch.optim``, by name.
        lr: Its learning rate, > 0.
        seed: Of the order of samples, and of dropout and the like.
    """

    name: str
    network: nn.Module
    tasks: tuple[TaskSpec, ...]
    data: TaskData
    epochs: int
    batch_size: int = 64
    optimizer: str = "Adam"
    lr: float = 0.001
    seed: int = 0

    @property
    def drop_last(self) -> bool:
        """Whether the last batch of a pass is left out: it would be a single sample."""
        return self.batch_size > 1 and len(self.data) > 1 and len(self.data) % self.batch_size == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """How the training of a job ended.

    Attributes:
        name: The job's.
        loss: Mean of the last pass, NaN if there was none.
        seconds: What the training took.
        problem: Why its network is of no use, None if it is trained.
    """

    name: str
    loss: float = math.nan
    seconds: float = 0.0
    problem: str | None = None


#: Trains all jobs and says of each, when it is done and in any order, how it ended. What a job does is its own problem.
Train = Callable[[Sequence[TrainJob]], Iterable[Trained]]


def train_plainly(jobs: Sequence[TrainJob]) -> Iterator[Trained]:
    """Train one job after another, by the loop that anyone would write in PyTorch. See :data:`Train`."""
    for job in jobs:
        begin = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            try:
                loss, problem = _train(job)
            except (RuntimeError, ValueError) as error:  # of PyTorch, about this network
                loss, problem = math.nan, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        yield Trained(name=job.name, loss=loss, seconds=time.perf_counter() - begin, problem=problem)


def _train(job: TrainJob) -> tuple[float, str | None]:
    torch.manual_seed(job.seed)
    optimizer = getattr(torch.optim, job.optimizer)(job.network.parameters(), lr=job.lr)
    batches = DataLoader(
        range(len(job.data)),  # pyrefly: ignore[bad-argument-type] - anything with a length and items is a dataset
        batch_size=job.batch_size,
        shuffle=True,
        drop_last=job.drop_last,
        collate_fn=torch.tensor,
        generator=torch.Generator().manual_seed(job.seed),
    )
    job.network.train()
    mean = math.nan
    for _ in range(job.epochs):
        total = num_samples = 0.0
        for index in batches:
            batch = job.data.take(index)
            optimizer.zero_grad(set_to_none=True)
            loss = weighted_sum(job.tasks, job.network(*batch.inputs), batch.labels).mean()
            loss.backward()
            if not math.isfinite(value := loss.item()):
                return value, f"its loss is {value}"
            optimizer.step()
            total, num_samples = total + value * len(batch), num_samples + len(batch)
        mean = total / num_samples
    return mean, None
