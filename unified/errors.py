"""The errors a user can meet; each class says what happened and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong with what was handed in.

    Attributes:
        code: Short stable code, e.g. ``"E-FIELD"``, to search for.
        job: Name of the job, or the folder where the name could not be read.
        field: Where: a path such as ``"optimizer.lr"`` or a file name.
        expected: What would have been accepted.
        given: What came instead.
        remedy: What to do.
    """

    code: str
    job: str
    field: str
    expected: str
    given: str
    remedy: str

    def __str__(self) -> str:
        return f"[{self.code}] job {self.job!r}: {self.field}: expected {self.expected}, got {self.given}; {self.remedy}"


class UnifiedError(Exception):
    """The root of all errors raised on purpose by this package: catch this one to catch them all."""


class InvalidSubmission(UnifiedError):  # noqa: N818 - named for what the user handed in
    """What was handed in cannot be trained. ``problems`` lists everything that is wrong, at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type, tuple[tuple[Problem, ...]]]:
        return (type(self), (self.problems,))


class ExportError(UnifiedError):
    """A model could not be written as a ``.umodel``. The message carries PyTorch's reason and the line to change."""


class DoesNotFitError(UnifiedError):
    """A job needs more memory than a slot has. Lower ``batch_size`` or use a bigger device."""


class SlowEstimateError(UnifiedError):
    """What a job needs could not be found out in time. Make its forward shorter: fewer operators, loops of fewer turns."""


class WorkerDiedError(UnifiedError):
    """A worker process ended without being asked to. Its jobs go on from their checkpoints in a new one."""


class NurseryDiedError(WorkerDiedError):
    """The process that starts workers is gone, and all workers with it. Run again; a service starts a new one by itself."""


class SpawnError(WorkerDiedError):
    """The system lets no process be started now: a limit on processes or memory is reached. Try again later."""


class ReportError(WorkerDiedError):
    """A process said what is no report of ours: damaged, or taken over by the code it runs. It is ended as if it had died."""


class ReadTimeoutError(WorkerDiedError):
    """Reading a job took too long and was stopped."""


class JobFailedError(UnifiedError):
    """A job failed; the message is its reason. Its neighbours went on."""


class CheckpointError(UnifiedError):
    """A checkpoint is damaged or belongs to another job. Delete it to start that job from its beginning."""


class NotStackableError(UnifiedError):
    """Members cannot step as one; the message says why. They train side by side instead."""


class SandboxError(UnifiedError):
    """The operating-system ring that was asked for cannot be had here; the message says what is missing."""
