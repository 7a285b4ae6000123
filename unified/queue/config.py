"""The operator's settings: ``config.toml`` in the root, each of which a command-line option may override."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from unified.queue.errors import RootError
from unified.queue.trusted import Trusted
from unified.sandbox.records import Mode

GIB = 1 << 30


class ServiceConfig(BaseModel):
    """Settings of a queue and its supervisor. Times are seconds, sizes bytes; a limit of 0 means none.

    Attributes:
        scheduler: Who trains next: a name with options, as on the command line.
        slots: Number of workers, or ``"auto"``: one per GPU, or per core of a CPU host.
        threads: Intra-op threads of each CPU slot.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        deterministic: Use deterministic kernels only.
        stacking: Let jobs of one architecture step as one where that is faster; never with ``deterministic``.
        sandbox: Confine workers and readers: ``"off"``, ``"auto"`` (as far as the system can) or ``"required"``.
        trust: Accept models that run code when they are loaded, whoever hands them in.
        trusted: Accept those that a listed key has signed; None: none.
        lease_seconds: How long a job stays with a supervisor that does not renew.
        heartbeat_seconds: How often it renews.
        stall_seconds: A worker that finishes no step for so long is hung.
        checkpoint_seconds: Interval between checkpoints of a job that trains.
        grace_seconds: What SIGTERM leaves for checkpoints.
        retry_seconds: First wait before a job is tried again; doubled each time, 15 minutes at most.
        max_infra_failures: Deaths of workers without any progress of the job in between, after which it is given up.
        tick_seconds: Multiplies the intervals of all ticks but the heartbeat; tests use less than 1.
        settle_seconds: A dropped entry must have been unchanged for so long.
        patience_seconds: An entry that cannot be read is rejected only after being unchanged for so long.
        window: How many waiting jobs the scheduler chooses among.
        max_job_bytes: Largest job folder.
        max_archive_bytes: Largest zip, and what an upload may be.
        max_archive_files: Most files in an archive or folder.
        max_jobs_per_user: Most jobs of one user that have not ended.
        max_bytes_per_user: Most bytes that one user's jobs and results may take.
        max_total_bytes: The same of all users.
        min_free_bytes: Below this, nothing is accepted and checkpointing jobs are paused until there is room.
        keep_results_days: Results, checkpoints and logs of jobs that ended longer ago are removed; 0 keeps them.
        keep_rejected_days: Rejected entries and abandoned uploads likewise.
        data_roots: Folders outside the root whose files jobs may name by absolute path.
        tensorboard: Write TensorBoard event files, one run per job, under ``tensorboard/``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    scheduler: str = "default"
    slots: PositiveInt | str = "auto"
    threads: PositiveInt = 1
    device: str = "auto"
    deterministic: bool = False
    stacking: bool = True
    trust: bool = False
    sandbox: Mode = "auto"
    trusted: Trusted | None = None
    lease_seconds: PositiveFloat = 30.0
    heartbeat_seconds: PositiveFloat = 10.0
    stall_seconds: PositiveFloat = 300.0
    checkpoint_seconds: PositiveFloat = 60.0
    grace_seconds: PositiveFloat = 60.0
    retry_seconds: NonNegativeFloat = 10.0
    max_infra_failures: PositiveInt = 10
    tick_seconds: PositiveFloat = 1.0
    settle_seconds: NonNegativeFloat = 2.0
    patience_seconds: NonNegativeFloat = 30.0
    window: PositiveInt = 200
    max_job_bytes: NonNegativeInt = 64 * GIB
    max_archive_bytes: NonNegativeInt = 8 * GIB
    max_archive_files: NonNegativeInt = 100_000
    max_jobs_per_user: NonNegativeInt = 0
    max_bytes_per_user: NonNegativeInt = 0
    max_total_bytes: NonNegativeInt = 0
    min_free_bytes: NonNegativeInt = GIB // 4
    keep_results_days: NonNegativeFloat = 0.0
    keep_rejected_days: NonNegativeFloat = 14.0
    data_roots: tuple[Path, ...] = ()
    tensorboard: bool = False

    @classmethod
    def read(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> ServiceConfig:
        """Read ``config.toml`` if it is there; ``overrides`` that are not None count instead.

        Raises:
            RootError: With everything that is wrong with it.
        """
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RootError(f"{path} is not TOML: {error}") from error
        content |= {name: value for name, value in (overrides or {}).items() if value is not None}
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise RootError("\n".join(_told(item, path, overrides or {}) for item in error.errors())) from error


def _told(item: Any, path: Path, overrides: Mapping[str, Any]) -> str:
    """Say what is wrong with a setting, and where it was given."""
    name, *below = item["loc"] or ("?",)
    where = "command line" if overrides.get(name) is not None else str(path)
    if name == "trusted":  # a table: say where in it
        name = "trusted" + "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in below)
    if item["type"] == "extra_forbidden":
        table = Trusted if below else ServiceConfig
        near = difflib.get_close_matches(str(item["loc"][-1]), table.model_fields, n=1)
        meant = f"did you mean {near[0]!r}?" if near else "docs/queue.md lists the settings"
        return f"{where}: there is no setting {name!r}; {meant}"
    message = str(item["ctx"]["error"]) if item["type"] == "value_error" else item["msg"].lower()
    return f"{where}: {name}: {message}, got {item['input']!r}"
