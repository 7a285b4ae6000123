"""The folder of a queue: where everything of it is, and the lock that makes one supervisor its owner."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified.queue.errors import RootError

LOCK_SECONDS = 1.0
_FOLDERS = ("incoming", "jobs", "results", "dead", "rejected", "uploads", "files", "data", "cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """Paths below ``path``.

    ``incoming`` takes submissions, ``rejected`` those that are none; ``jobs/ID`` is a job's own; ``results/ID`` what its owner
    gets; ``dead/ID`` what is left of one that was given up; ``data`` is the operator's, for data that several jobs share;
    ``files`` holds each file that jobs brought along once, by content; ``uploads`` what came over HTTP.
    """

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> Root:
        """Return the root at ``path``, which must exist as such.

        Raises:
            RootError: If it is none.
        """
        root = cls(path=Path(path).resolve())
        if not root.database.is_file():
            raise RootError(f"{root.path} is not a queue's folder; 'unified serve --root {path}' or a first submit makes one")
        return root

    @classmethod
    def make(cls, path: str | Path) -> Root:
        """Return the root at ``path``; missing folders are made.

        Raises:
            RootError: If they cannot be.
        """
        root = cls(path=Path(path).resolve())
        try:
            for name in _FOLDERS:
                (root.path / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = error.strerror or str(error)
            raise RootError(f"{root.path} cannot hold a queue: {why}; choose another --root folder") from error
        return root

    @property
    def database(self) -> Path:
        """The store."""
        return self.path / "store.db"

    @property
    def lock(self) -> Path:
        """Locked by the supervisor; says who that is."""
        return self.path / "supervisor.lock"

    @property
    def status(self) -> Path:
        """What the supervisor says of itself about once a second, as JSON."""
        return self.path / "status.json"

    @property
    def timeline(self) -> Path:
        """One JSON line per turn of a job on a slot."""
        return self.path / "timeline.jsonl"

    @property
    def config(self) -> Path:
        """The operator's settings."""
        return self.path / "config.toml"

    @property
    def incoming(self) -> Path:
        """Where submissions are dropped."""
        return self.path / "incoming"

    @property
    def rejected(self) -> Path:
        """Where malformed submissions end."""
        return self.path / "rejected"

    @property
    def uploads(self) -> Path:
        """What came over HTTP, by SHA-256."""
        return self.path / "uploads"

    @property
    def files(self) -> Path:
        """Files that submitted jobs brought along, by SHA-256; jobs have hard links to them."""
        return self.path / "files"

    @property
    def data(self) -> Path:
        """The operator's folder of shared data: ``../data/x`` in a dropped job's ``job.json``."""
        return self.path / "data"

    @property
    def cache(self) -> Path:
        """Converted datasets; may be deleted while no supervisor runs."""
        return self.path / "cache"

    def job(self, job: str) -> Path:
        """The job's own folder."""
        return self.path / "jobs" / job

    def spec(self, job: str) -> Path:
        """The job folder as it was submitted."""
        return self.job(job) / "spec"

    def checkpoints(self, job: str) -> Path:
        """Where its checkpoints are."""
        return self.job(job) / "ckpt"

    def log(self, job: str) -> Path:
        """What happened to it, as text."""
        return self.job(job) / "log.txt"

    def metrics(self, job: str) -> Path:
        """Its metrics over time, as JSON lines."""
        return self.job(job) / "metrics.jsonl"

    def working_result(self, job: str, epoch: int) -> Path:
        """Where a worker writes the result before it is published."""
        return self.job(job) / f"result-{epoch}"

    def result(self, job: str) -> Path:
        """Its published result."""
        return self.path / "results" / job

    def dead(self, job: str) -> Path:
        """What is left of a job that was given up."""
        return self.path / "dead" / job

    def relative(self, path: Path) -> str:
        """Return ``path`` relative to the root, for the store."""
        return str(path.relative_to(self.path))

    def take_lock(self) -> int:
        """Become the supervisor of this root; return the descriptor that holds the lock, to be closed at the end.

        Raises:
            RootError: If another one is.
        """
        descriptor = os.open(self.lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + LOCK_SECONDS
        while not _is_locked(descriptor):
            if time.monotonic() < deadline:
                time.sleep(0.02)  # somebody may only be looking whether there is a supervisor
                continue
            os.close(descriptor)
            holder = self.supervisor() or {}
            raise RootError(f"{self.path} has a supervisor already: process {holder.get('pid', '?')}")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "started": time.time()}).encode(), 0)
        return descriptor

    def supervisor(self) -> dict[str, Any] | None:
        """Return what the lock says of the living supervisor (``pid``, ``started``), or None if there is none."""
        try:
            descriptor = os.open(self.lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            with contextlib.suppress(ValueError, OSError):
                return json.loads(os.pread(descriptor, 4096, 0))
            return {}
        else:
            return None
        finally:
            os.close(descriptor)

    def read_status(self) -> dict[str, Any] | None:
        """Return what the supervisor last said of itself, or None."""
        try:
            return json.loads(self.status.read_bytes())
        except (OSError, ValueError):
            return None


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
