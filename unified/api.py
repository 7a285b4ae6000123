"""The Python API in one call: hand in jobs, get each back as it finishes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from schedulers.base import Scheduler
from unified.engine import Engine
from unified.job import JobSpec
from unified.results import Result


def train(
    jobs: JobSpec | Sequence[JobSpec],
    *,
    scheduler: str | Scheduler = "default",
    slots: int | str = "auto",
    device: str = "auto",
    out: str | Path | None = None,
    stacking: bool = True,
) -> Iterator[Result]:
    """Train jobs side by side and yield each one's :class:`Result` as it finishes, while the others go on.

    Every model ends with the weights, buffers and metrics that the plain PyTorch loop would have given it alone, bit for bit
    on a CPU with the same number of threads (``docs/architecture.md``, "The contract"); to rounding, if it stepped as one with
    others of its architecture, which ``stacking="exact"`` in the job forbids. The models handed in are not changed;
    ``result.load_into(model)`` puts the trained weights into one.

    Args:
        jobs: What to train, one job or several. Models may be ``nn.Module`` objects or files, data tensors or files.
        scheduler: A name of ``unified schedulers``, with options as in ``"round-robin:quantum=200"`` (steps), or an object with
            ``select``. By default shortest remaining time first, with ageing.
        slots: Number of worker processes, or ``"auto"``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:0"``.
        out: Folder for results and checkpoints, which must not hold an earlier run (``Engine(resume=True)`` goes on with
            one); None keeps only what the results hold.
        stacking: Whether jobs of one architecture may step as one where that is measured to be faster (``docs/stacking.md``).

    Yields:
        One result per job, in the order in which they end; a failed job's has ``state`` FAILED and a ``reason``.

    Raises:
        InvalidSubmission: With everything that is wrong with any of the jobs; then nothing was started.
        DoesNotFitError: If a job needs more memory than there is.

    Example:
        >>> import torch, unified
        >>> data = {"train": (torch.randn(64, 4), torch.randint(3, (64,)))}
        >>> common = {"data": data, "loss": "CrossEntropyLoss", "epochs": 2, "batch_size": 16}
        >>> small = unified.JobSpec(name="small", model=torch.nn.Linear(4, 3), optimizer="SGD", **common)
        >>> large = unified.JobSpec(
        ...     name="large", model=torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Linear(64, 3)),
        ...     optimizer={"name": "Adam", "lr": 0.01}, **common,
        ... )
        >>> sorted(result.name for result in unified.train([small, large], scheduler="sjf", slots=1))
        ['large', 'small']
    """
    with Engine(scheduler=scheduler, slots=slots, device=device, out=out, stacking=stacking) as engine:
        engine.submit_all([jobs] if isinstance(jobs, JobSpec) else jobs)
        yield from engine.run()
