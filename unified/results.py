"""What a run gives back for each job, and the file that seals it on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified.accounting import slowdown
from unified.admission import DatasetRef
from unified.errors import JobFailedError
from unified.job_state import JobState
from unified.ledger import JobRecord
from unified.messages import Returned
from unified.queue.files import write_durably
from unified.summary import finite

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Where a job's time went, in seconds.

    Attributes:
        completion: From submission to the verified result on disk: what its owner waits for.
        waiting: Of that, from submission to the first turn.
        training: Of that, the sum of its turns.
    """

    completion: float
    waiting: float
    training: float

    @property
    def slowdown(self) -> float | None:
        """How many times as long as its turns it took, see :func:`unified.accounting.slowdown`; None if it had none."""
        return slowdown(self.completion, self.training)


@dataclass(slots=True, kw_only=True)
class Result:
    """How one job ended.

    Attributes:
        name: The job's name.
        id: What a queue calls it; ``""`` in a run, where names are unique.
        state: FINISHED, FAILED or CANCELLED.
        reason: Why it failed, else None.
        metrics: The last row of its metrics: ``train_loss``, ``test_loss``, ``lr``, … by name.
        timing: Where its time went.
        folder: Where its files are, or None if the run kept none.
        num_threads: Intra-op threads it trained with on a CPU (the plain loop equals it with as many); None on a GPU.
    """

    name: str
    state: JobState
    reason: str | None
    metrics: dict[str, float]
    timing: Timing
    folder: Path | None
    num_threads: int | None
    id: str = ""
    _state_dict: Mapping[str, Tensor] | None = field(default=None, repr=False)

    @property
    def state_dict(self) -> Mapping[str, Tensor]:
        """The trained weights and buffers, on the CPU, in the original names and order; this result's own copy.

        Raises:
            JobFailedError: If the job did not finish.
        """
        if self.state is not JobState.FINISHED:
            raise JobFailedError(f"job {self.name!r} is {self.state} and has no weights: {self.reason or 'on request'}")
        if self._state_dict is None:
            from separator.result import read_weights

            assert self.folder is not None, "a finished job has its files or its weights"
            self._state_dict = read_weights(self.folder)
        return self._state_dict

    def load_into(self, model: nn.Module) -> nn.Module:
        """Copy the trained weights into ``model``, strictly, and return it.

        Raises:
            JobFailedError: If the job did not finish.
            RuntimeError: If the model's names or shapes are not those of the trained one.
        """
        model.load_state_dict(self.state_dict, strict=True)
        return model


def result_of(record: JobRecord) -> Result:
    """Return the result of a job that has ended."""
    return Result(
        name=record.name,
        state=record.state,
        reason=record.reason if record.state is JobState.FAILED else None,
        metrics=dict(record.metrics),
        timing=timing_of(record),
        folder=record.results,
        num_threads=record.num_threads,
    )


def timing_of(record: JobRecord) -> Timing:
    """Return where an ended job's time went."""
    end = record.end_time if record.end_time is not None else record.submit_time
    start = record.first_start if record.first_start is not None else end
    return Timing(
        waiting=start - record.submit_time,
        training=record.training_seconds,
        completion=end - record.submit_time,
    )


def seal(record: JobRecord, returned: Returned, *, scheduler: str, device: str) -> None:
    """Write ``result.json``, last of all files: a folder that has it is complete and verified."""
    spec, timing = record.submission.spec, timing_of(record)
    content: dict[str, Any] = {
        "name": record.name,
        "user": spec.user,
        "state": str(JobState.FINISHED),
        "metrics": returned.metrics,
        "steps": record.step,
        "completion_seconds": timing.completion,
        "slowdown": timing.slowdown,
        "waiting_seconds": timing.waiting,
        "training_seconds": timing.training,
        "peak_bytes": record.peak_bytes,
        "fingerprint": record.submission.fingerprint(),
        "seed": spec.seed,
        "threads": record.num_threads,
        "device": device,
        "scheduler": scheduler,
        "ran_beside": sorted(record.companions),
        "stacked_with": sorted(record.stacked_with),
        "stack_speedup": record.stack_speedup,
        "sha256": returned.hashes,
        "versions": returned.versions,
        "sweep": None if spec.from_sweep is None else spec.from_sweep.model_dump(mode="json"),
        "job": spec.to_json(),
        "datasets": {"train": _dataset(record.submission.train), "test": _dataset(record.submission.test)},
    }
    write_json(record.results / "result.json", finite(content))


def _dataset(dataset: DatasetRef | None) -> dict[str, Any] | None:
    """Return where a job's data was, as tensors, and what it held."""
    return None if dataset is None else asdict(dataset) | {"path": str(dataset.path.resolve())}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that after a crash ``path`` holds all of it or what was there before."""
    write_durably(path, (json.dumps(content, indent=2) + "\n").encode())
