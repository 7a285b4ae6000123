"""``unified.Client``: a queue as seen from Python, over its folder or over HTTP, with the verbs of ``unified.Engine``."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from unified.errors import UnifiedError
from unified.intake import job_folders
from unified.job import JobSpec
from unified.job_state import ENDED, JobState
from unified.results import Result, Timing
from unified.service.client_doors import Door, FolderDoor, Standing

_FIRST_POLL_SECONDS = 0.1
_LAST_POLL_SECONDS = 2.0


class Client:
    """Hands jobs to a queue and gets their results; what is handed in goes on when the client is gone.

    Jobs are named by the ids that submitting returns; an id may be shortened while unique.

    Args:
        where: The queue's root folder, made if it is not there, or the address of a service, as in
            ``"http://127.0.0.1:8080"``.
        token: A token of the service; by default what the environment variable ``UNIFIED_TOKEN`` holds.
        out: Where results that come over HTTP are kept, each in a folder of its job's id; None keeps weights in memory.

    Raises:
        RootError: If the folder cannot be a queue.

    Example:
        >>> import tempfile, torch, unified
        >>> job = unified.JobSpec(
        ...     name="tiny", model=torch.nn.Linear(4, 2), data={"train": (torch.randn(32, 4), torch.zeros(32).long())},
        ...     loss="CrossEntropyLoss", optimizer={"name": "SGD", "lr": 0.1}, epochs=1, batch_size=8,
        ... )
        >>> with tempfile.TemporaryDirectory() as root, Client(root) as client:
        ...     job_id = client.submit(job)
        ...     client.cancel(job_id)  # no supervisor runs here that would train it
        ...     str(client.state(job_id))
        'cancelled'
    """

    def __init__(self, where: str | Path, *, token: str | None = None, out: str | Path | None = None) -> None:
        self._door = _door(where, token)
        self._scratch = Path(tempfile.mkdtemp(prefix="unified-client-"))
        self._out = None if out is None else Path(out).resolve()
        self._submitted: list[str] = []
        self._reported: set[str] = set()
        self._num_staged = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def submit(self, job: JobSpec) -> str:
        """Hand in a job made in Python and return its id; when this returns, the job survives a power cut.

        A model that is an ``nn.Module`` goes as a ``.umodel``, exported with the first training samples as its example.

        Raises:
            InvalidSubmission: With everything that is wrong with it.
            ExportError: If its model cannot be exported.
            ConflictError: If its id, or its client_token, is another job's.
            RefusedError: If it is over a limit.
            UnifiedError: If it is a sweep, whose members have an id each: :meth:`submit_all` returns them.
        """
        if job.sweep is not None:
            count = len(job.members())
            raise UnifiedError(f"job {job.name!r} is a sweep of {count} jobs with an id each; submit_all([job]) returns them")
        return self._submit_spec(job)[0]

    def submit_all(self, jobs: Sequence[JobSpec]) -> list[str]:
        """Hand in several jobs, one after another, and return their ids, of a sweep those of its members.

        Raises as :meth:`submit` does; what was handed in before stays, and is found there when it is handed in again.
        """
        return [job_id for job in jobs for job_id in self._submit_spec(job)]

    def submit_folders(self, folders: str | Path | Sequence[str | Path]) -> list[str]:
        """Hand in job folders, or folders that hold job folders, and return the jobs' ids, of a sweep those of its members.

        Raises:
            InvalidSubmission: With everything that is wrong with one of them; those before it are handed in.
        """
        if isinstance(folders, str | Path):
            folders = [folders]
        found = [job for folder in folders for job in job_folders(Path(folder))]
        return [job_id for folder in found for job_id in self._submit(folder)]

    def pause(self, job: str, *, wait_seconds: float | None = None) -> None:
        """Set a job aside; its memory is free when its state is PAUSED.

        Args:
            job: Its id.
            wait_seconds: How long to wait until that is so; None: not at all.

        Raises:
            UnknownJobError: If there is no such job, or it is another user's.
            ConflictError: If it cannot be done in the job's present state.
        """
        self._door.ask("pause", job, wait_seconds=wait_seconds)

    def resume(self, job: str) -> None:
        """Let a paused job wait for a slot again, in its old place; raises as :meth:`pause` does."""
        self._door.ask("resume", job)

    def cancel(self, job: str, *, wait_seconds: float | None = None) -> None:
        """End a job; its state is CANCELLED when it is off its slot. Like :meth:`pause` otherwise."""
        self._door.ask("cancel", job, wait_seconds=wait_seconds)

    def checkpoint(self, job: str, *, wait_seconds: float | None = None) -> None:
        """Save a job's state at its next step. Like :meth:`pause` otherwise."""
        self._door.ask("checkpoint", job, wait_seconds=wait_seconds)

    def requeue(self, job: str, *, from_scratch: bool = False) -> None:
        """Queue a job again that failed, was given up or cancelled; raises as :meth:`pause` does."""
        self._door.ask("requeue", job, from_scratch=from_scratch)

    def state(self, job: str) -> JobState:
        """Return where a job stands.

        Raises:
            UnknownJobError: If there is no such job.
        """
        return self._door.look(job).state

    def reason(self, job: str) -> str:
        """Return why a job stands where it stands; raises as :meth:`state` does."""
        return self._door.look(job).reason

    def log(self, job: str) -> str:
        """Return a job's log; raises as :meth:`state` does."""
        return self._door.log(job)

    def metrics(self, job: str, since: int = 0) -> list[dict[str, Any]]:
        """Return a job's metrics over time, from step ``since`` on; raises as :meth:`state` does."""
        return self._door.metrics(job, since)

    def run(self) -> Iterator[Result]:
        """Yield the result of each job that this client handed in, as it ends, once; stop when the rest is paused."""
        yield from self._results(lambda: self._submitted, self._reported, stops_at=ENDED | {JobState.PAUSED})

    def wait(self, jobs: Sequence[str] | None = None, *, timeout: float | None = None) -> Iterator[Result]:
        """Yield the result of each of these jobs as it ends.

        Args:
            jobs: Their ids; by default of all that this client handed in.
            timeout: Seconds to wait for them.

        Raises:
            TimeoutError: If some have not ended by then.
            UnknownJobError: If there is no such job.
        """
        wanted = list(dict.fromkeys(self._submitted if jobs is None else jobs))
        yield from self._results(lambda: wanted, set(), stops_at=ENDED, timeout=timeout)

    def close(self) -> None:
        """Let go of the queue; its jobs go on."""
        self._door.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _submit_spec(self, job: JobSpec) -> list[str]:
        from unified.service.client_staging import stage_job

        self._num_staged += 1
        folder = self._scratch / str(self._num_staged) / job.name
        try:
            return self._submit(stage_job(job, folder, self._scratch / "data"))
        finally:
            shutil.rmtree(folder.parent, ignore_errors=True)

    def _submit(self, folder: Path) -> list[str]:
        jobs = self._door.submit(folder)
        self._submitted += [job for job in jobs if job not in self._submitted]
        return jobs

    def _results(
        self,
        wanted: Callable[[], Sequence[str]],
        told: set[str],
        *,
        stops_at: frozenset[JobState],
        timeout: float | None = None,
    ) -> Iterator[Result]:
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST_POLL_SECONDS
        while True:
            standings = [(job, self._door.look(job)) for job in wanted() if job not in told]
            for job, standing in standings:
                if standing.state in ENDED:
                    told.add(job)
                    pause = _FIRST_POLL_SECONDS
                    yield self._result(standing)
            # One that was paused when we looked may go on again: only if all are at rest there is nothing to wait for.
            seen = {job for job, standing in standings if standing.state in stops_at}
            left = [job for job in wanted() if job not in told]
            if seen.issuperset(left):
                return
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{len(left)} of the jobs have not ended: {', '.join(left[:10])}")
            time.sleep(pause)
            pause = min(1.5 * pause, _LAST_POLL_SECONDS)

    def _result(self, standing: Standing) -> Result:
        is_finished = standing.state is JobState.FINISHED
        folder = self._door.fetch(standing.id, self._out or self._scratch / "results") if is_finished else None
        result = Result(
            name=standing.name,
            state=standing.state,
            reason=None if is_finished else standing.reason,
            metrics=standing.metrics,
            timing=Timing(
                waiting=standing.waiting_seconds,
                training=standing.training_seconds,
                completion=standing.completion_seconds,
            ),
            folder=folder,
            num_threads=standing.num_threads,
            id=standing.id,
        )
        if folder is not None and folder.is_relative_to(self._scratch):
            _ = result.state_dict  # read now: the files go with the client
            result.folder = None
            shutil.rmtree(folder, ignore_errors=True)
        return result


def _door(where: str | Path, token: str | None) -> Door:
    text = str(where)
    if not text.startswith(("http://", "https://")):
        if "://" in text:
            raise UnifiedError(f"expected a folder or an address that begins with http:// or https://, got {text!r}")
        return FolderDoor(Path(where))
    from unified.service.client_http import HttpDoor

    return HttpDoor(text, token if token is not None else os.environ.get("UNIFIED_TOKEN"))
