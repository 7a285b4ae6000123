"""Training a family's networks side by side: one batch of jobs for the co-training engine."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from serving.training import Trained, TrainJob
from unified.device import num_usable_cores, parse_device
from unified.engine import Engine
from unified.errors import InvalidSubmission
from unified.events import Event
from unified.job import JobSpec
from unified.job_state import JobState
from unified.results import Result
from unified.tensor_files import write_tensors
from unified.variants.last_layer import LastLayerLoss, own_weights, tensors_of

_MANY = 2  # jobs for each core: then one thread for each job wastes none


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTraining:
    """A :data:`serving.training.Train` that trains all jobs in one batch of :class:`unified.Engine`.

    A network ends as the plain loop would leave it: bit for bit with ``stacking=False`` and as many threads, else to rounding.
    The engine trains a module and one loss of PyTorch, so the weighted sum of losses is made the module's last layer, and the
    loss is ``HingeEmbeddingLoss`` against ones: the mean of what it is given, gradients included. Samples and labels are
    written once, for all jobs that share them, and mapped by the workers.

    Attributes:
        slots: Number of workers, or ``"auto"``.
        threads: CPU threads of each, None: planned.
        device: ``"auto"``, ``"cpu"`` or ``"cuda:0"``.
        stacking: Whether networks of one architecture may step as one.
        listeners: Called with every event of the engine.
    """

    slots: int | str = "auto"
    threads: int | None = None
    device: str = "auto"
    stacking: bool = True
    listeners: Sequence[Callable[[Event], None]] = field(default_factory=tuple)

    def __call__(self, jobs: Sequence[TrainJob]) -> Iterator[Trained]:
        """Train, and tell of each job when it is done."""
        trained = [job for job in jobs if job.epochs]
        yield from (Trained(name=job.name) for job in jobs if not job.epochs)
        if not trained:
            return
        by_name = {job.name: job for job in trained}
        with tempfile.TemporaryDirectory(prefix="unified-variants-") as folder, self._engine(len(trained)) as engine:
            files = _write_data(trained, Path(folder))
            specs = {job.name: self._spec(job, files[id(job.data)]) for job in trained}
            yield from _submit(engine, specs)
            for result in engine.run():
                yield _trained(by_name[result.name], result)

    def _engine(self, num_jobs: int) -> Engine:
        slots, threads = self.slots, self.threads
        cores = num_usable_cores()
        if (slots, threads) == ("auto", None) and parse_device(self.device) == ("cpu",) and num_jobs >= _MANY * cores:
            slots, threads = cores, 1  # as good as any plan, and nothing need be timed for it
        return Engine(
            scheduler="fcfs",  # jobs come the largest first, so that the last ones to end are short
            slots=slots,
            threads=threads,
            device=self.device,
            stacking=self.stacking,
            listeners=self.listeners,
        )

    def _spec(self, job: TrainJob, file: Path) -> JobSpec:
        return JobSpec(
            name=job.name,
            model=LastLayerLoss(job.network.train(), job.tasks, job.data),
            data={"train": str(file)},  # pyrefly: ignore[bad-argument-type] - pydantic makes the parts of plain values
            loss="HingeEmbeddingLoss",  # pyrefly: ignore[bad-argument-type]
            optimizer={"name": job.optimizer, "lr": job.lr},  # pyrefly: ignore[bad-argument-type]
            epochs=job.epochs,
            batch_size=job.batch_size,
            drop_last=job.drop_last,
            seed=job.seed,
        )


def _write_data(jobs: Sequence[TrainJob], folder: Path) -> dict[int, Path]:
    """Write the data of all jobs, each once, and return the files by the data's identity."""
    files: dict[int, Path] = {}
    for job in jobs:
        if id(job.data) not in files:
            path = files[id(job.data)] = folder / f"{len(files)}.safetensors"
            write_tensors(path, tensors_of(job.data), torch.ones(len(job.data)), {})
    return files


def _submit(engine: Engine, specs: dict[str, JobSpec]) -> Iterator[Trained]:
    """Hand all jobs in; those that the engine refuses are told, and the others handed in without them."""
    while specs:
        try:
            engine.submit_all(list(specs.values()))
        except InvalidSubmission as error:
            refused = {problem.job: problem for problem in error.problems if problem.job in specs}
            if not refused:
                raise
            for name, problem in refused.items():
                del specs[name]
                yield Trained(name=name, problem=str(problem))
        else:
            return


def _trained(job: TrainJob, result: Result) -> Trained:
    if result.state is not JobState.FINISHED:
        return Trained(name=job.name, problem=result.reason or str(result.state))
    job.network.load_state_dict(own_weights(result.state_dict))
    return Trained(name=job.name, loss=result.metrics.get("train_loss", math.nan), seconds=result.timing.training)
