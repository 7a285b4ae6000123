"""What the engine and its workers say to each other: frozen records, pickled over a pipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from schedulers.base import Quantum
from unified.admission import Submission
from unified.budgets import Fault
from unified.errors import Problem
from unified.read_limits import DEFAULT_LIMITS, ReadLimits
from unified.sandbox.records import Mode
from unified.validation import StageOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Engine to worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host(Command):
    """Let this job join the hybrid, from its newest good checkpoint if there is one.

    Attributes:
        submission: The job.
        checkpoints: Where its checkpoints go.
        results: Where its result goes.
        epoch: Number of this residency: checkpoints and reports carry it.
        restore_from: The seals (``….json``) of checkpoints to go on from, best first; if none is sound it begins from its
            beginning and says so. None: the newest sound one in ``checkpoints``, of which at least one must be.
        checkpoint_seconds: Interval between checkpoints unless the job's own ``every_steps`` says otherwise; None: the worker
            writes them when it is told.
    """

    submission: Submission
    checkpoints: Path
    results: Path
    epoch: int = 0
    restore_from: tuple[Path, ...] | None = None
    checkpoint_seconds: float | None = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTurn(Command):
    """Train this job for one quantum, and with it its companions, as one if that pays.

    Attributes:
        job: Whose turn it is: the leader of a stack.
        quantum: How long.
        companions: Hosted jobs that are to step as one with it.
        speedup: What was measured of such a stack before; None: measure it.
        least_speedup: They step as one if that is more than so many times faster than side by side.
    """

    job: str
    quantum: Quantum
    companions: tuple[str, ...] = ()
    speedup: float | None = None
    least_speedup: float = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinTurn(Command):
    """Let this hosted job join the turn under way at the next step boundary; without one, its turn ends at once."""

    job: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndTurn(Command):
    """End the turn under way at the next step boundary, for all who have it; they stay. Without a turn nothing happens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteCheckpoint(Command):
    """Checkpoint this job at the next step boundary; it stays resident."""

    job: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evict(Command):
    """Drop this job at the next step boundary, after a checkpoint if ``keep``; ends its turn if it is in one."""

    job: str
    keep: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SetThreads(Command):
    """Use this many intra-op threads from now on, on cores from ``first_core``; only sent while nobody is resident."""

    num_threads: int
    first_core: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown(Command):
    """End the process; results still being written are finished first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Worker to engine, about one job in the residency ``epoch``."""

    job: str
    epoch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosted(Report):
    """The job is resident and stands at ``step`` (0, or where its checkpoint was); ``damaged`` checkpoints were passed over."""

    step: int
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Report):
    """The job stands at ``step`` of pass ``data_epoch`` over its data (from 1); ``loss`` is its latest batch's."""

    data_epoch: int
    step: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnded(Report):
    """One row of the job's ``metrics.jsonl``."""

    row: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnEnded(Report):
    """The job's turn is over; it stands at ``step``. ``done`` if nothing is left to train.

    ``is_preempted`` if it was ended by :class:`EndTurn`, before its time. ``peak_bytes`` is the most that it was measured to
    need, its neighbours aside; 0 where that cannot be measured.
    """

    step: int
    steps: int
    seconds: float
    done: bool
    peak_bytes: int
    is_preempted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointed(Report):
    """A checkpoint of the job at ``step`` is on disk, sealed by ``path``; ``seconds`` were spent on it.

    ``least_seconds`` is the shortest interval at which such checkpoints cost little enough.
    """

    step: int
    path: Path
    sha256: str
    num_bytes: int
    seconds: float
    least_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFailed(Report):
    """No checkpoint could be written (``reason``: a full disk, say); the job stays where it is and goes on.

    ``is_staying`` if it was to leave its slot and therefore did not; ``is_disk`` if the disk is full or fails, and would take
    ``num_bytes``.
    """

    reason: str
    is_staying: bool
    is_disk: bool = False
    num_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evicted(Report):
    """The job has left the hybrid at ``step``; its memory is free."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attending(Report):
    """The job's own code runs outside its turn, perhaps inside another's, until the same comes with ``is_over``.

    If the worker dies in between, this job is to blame.
    """

    is_over: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned(Report):
    """The job's result is on disk and verified."""

    metrics: dict[str, float]
    hashes: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Report):
    """The job failed for its own reason and is gone from the hybrid; ``step`` is where it stood, ``log`` the whole story."""

    reason: str
    step: int
    fault: Fault = Fault.OWN
    log: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackFormed(Report):
    """The job leads a stack: ``members``, itself first, step as one, ``speedup`` times faster than side by side."""

    members: tuple[str, ...]
    speedup: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StackRefused(Report):
    """The ``members`` do not step as one, for ``reason``; ``speedup`` if it was measured. The first goes on alone."""

    members: tuple[str, ...]
    reason: str
    speedup: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspect:
    """Engine to inspector: read this job folder.

    Attributes:
        folder: The job folder.
        cache: Where converted datasets and remembered hashes go.
        trust: Whether forms that run code are accepted; a SHA-256: only the one file that has it.
        staged: The folder was written by the Python API of this very user: its pickled model is the caller's own.
        device_type: ``"cpu"`` or ``"cuda"``: which kernels the memory estimate assumes.
        num_threads: Time training steps on a CPU with this many threads, or 0 for no timing.
        within_bytes: Time steps only if the job's estimated peak is below this.
        id: What a queue calls the job; ``""`` for its own name.
        data_roots: Folders whose files the job may name by absolute path.
        limits: What reading it may take.
        sandbox: Whether the process that reads it is confined to the job's files: ``"off"``, ``"auto"`` or ``"required"``.
    """

    folder: Path
    cache: Path
    trust: bool | str
    staged: bool
    device_type: str
    num_threads: int
    within_bytes: int
    id: str = ""
    data_roots: tuple[Path, ...] = ()
    limits: ReadLimits = DEFAULT_LIMITS
    sandbox: Mode = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSteps:
    """Engine to inspector: time training steps of this job on a throw-away copy, with the inspector's threads."""

    submission: Submission
    limits: ReadLimits = DEFAULT_LIMITS


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsTimed:
    """Inspector to engine: seconds of a step, None if it failed."""

    job: str
    step_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """Inspector to engine: the job, or everything that is wrong with it.

    With a ``submission``, ``problems`` holds at most that a trial step failed: such a job may still be run, to fail alone.
    ``stages`` says what became of each stage of the validation.
    """

    folder: Path
    submission: Submission | None
    problems: tuple[Problem, ...]
    step_seconds: float | None
    stages: tuple[StageOutcome, ...] = ()
