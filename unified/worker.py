"""The process that hosts one hybrid on one slot: it obeys the engine's commands between two steps, never inside one.

Commands are handled at step boundaries also while a member trains, so any member can be hosted, checkpointed or evicted
without touching the one whose turn it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from unified import messages
from unified.checkpoint import restore_checkpoint, save_checkpoint
from unified.cores import use_threads
from unified.datasets import DatasetPool
from unified.errors import UnifiedError
from unified.hybrid import HybridModule
from unified.member import Member
from unified.returning import Departure, depart, verify_departure, write_departure
from unified.submission.models import load_model
from unified.trainer import Hooks, Trainer, describe_failure

CHECKPOINT_SECONDS = 30.0


@dataclass(slots=True, kw_only=True)
class Resident:
    """A member in the hybrid and where its files go."""

    member: Member
    checkpoints: Path
    results: Path
    last_checkpoint: float


class Worker:
    """One slot's hybrid, its trainer, and the conversation with the engine.

    Args:
        pipe: To the engine.
        device: The slot's device.
        num_threads: Intra-op threads on a CPU slot.
    """

    def __init__(self, pipe: Connection, device: torch.device, num_threads: int) -> None:
        self._pipe = pipe
        self._device = device
        self._inbox: queue.SimpleQueue[messages.Command | Callable[[], None]] = queue.SimpleQueue()
        self._hybrid = HybridModule()
        self._trainer = Trainer(self._hybrid, device, num_threads)
        self._pool = DatasetPool(device=device, budget_bytes=_dataset_budget(device))
        self._residents: dict[str, Resident] = {}
        self._departing: dict[str, Departure] = {}
        self._running: str | None = None
        self._is_stopping_turn = False
        self._is_shutting_down = False
        self._hooks = Hooks(between_steps=self._between_steps, on_progress=self._report_progress, on_epoch=self._report_epoch)

    def serve(self) -> None:
        """Obey commands until told to shut down, or until the engine is gone."""
        threading.Thread(target=self._listen, daemon=True).start()
        while not (self._is_shutting_down and not self._departing):
            self._obey(self._inbox.get())

    def _listen(self) -> None:
        try:
            while True:
                self._inbox.put(self._pipe.recv())
        except (EOFError, OSError):
            self._inbox.put(messages.Shutdown())

    def _obey(self, command: messages.Command | Callable[[], None]) -> None:
        if callable(command):
            command()
            return
        match command:
            case messages.Host():
                self._host(command)
            case messages.RunTurn():
                self._run_turn(command)
            case messages.WriteCheckpoint():
                self._checkpoint(command.job)
            case messages.Evict():
                self._evict(command)
            case messages.SetThreads():
                self._trainer.num_threads = command.num_threads
                use_threads(command.num_threads, command.first_core)
            case messages.Shutdown():
                self._is_shutting_down = self._is_stopping_turn = True

    def _host(self, command: messages.Host) -> None:
        submission = command.submission
        try:
            with self._foreign_code(submission.name):
                member = self._build(command)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the job's own model, data or checkpoint: it fails alone
            self._say(messages.Failed(job=submission.name, reason=_one_line(error), step=0))
            return
        self._residents[submission.name] = Resident(
            member=member,
            checkpoints=command.checkpoints,
            results=command.results,
            last_checkpoint=time.monotonic(),
        )
        self._say(messages.Hosted(job=submission.name, step=member.progress.step))

    def _build(self, command: messages.Host) -> Member:
        submission = command.submission
        module = load_model(submission.model, job=submission.name).to(self._device)
        train = self._pool.get(submission.train)
        test = None if submission.test is None else self._pool.get(submission.test)
        self._hybrid.add(submission.name, module)
        try:
            member = Member(submission, module, train, test, self._device)
            restore_checkpoint(member, command.checkpoints)
        except BaseException:
            self._hybrid.drop(submission.name)
            self._release_data(submission.train.key, None if submission.test is None else submission.test.key)
            raise
        return member

    def _run_turn(self, command: messages.RunTurn) -> None:
        assert self._running is None, "turns do not nest"
        if command.job not in self._residents:
            return  # it failed or was evicted while the command was under way; the engine has been told
        resident = self._residents[command.job]
        member = resident.member
        self._running, self._is_stopping_turn = command.job, self._is_shutting_down
        report = self._trainer.run_turn(member, command.quantum, self._hooks)
        self._running = None
        if command.job not in self._residents:
            return  # evicted in its own turn
        if report.failure is not None:
            self._fail(resident, report.failure.reason, report.failure.log)
            return
        self._say(
            messages.TurnEnded(
                job=command.job,
                step=member.progress.step,
                steps=report.steps,
                seconds=report.seconds,
                done=member.is_done,
                peak_bytes=member.peak_bytes,
            )
        )
        if member.is_done:
            self._return(resident)

    def _between_steps(self) -> bool:
        """Obey what has arrived; True if the running turn has to end."""
        self._maybe_checkpoint(self._residents[self._running or ""])
        # What draws random numbers here (hosting, separating, verifying) puts the running member's state back itself.
        # Once the turn is to end, the rest waits: the next turn must not begin inside this one.
        while not self._is_stopping_turn and not self._inbox.empty():
            self._obey(self._inbox.get())
        return self._is_stopping_turn

    @contextlib.contextmanager
    def _foreign_code(self, job: str) -> Iterator[None]:
        """Let a job's own code run outside its turn; the engine knows whom to blame if it ends the process."""
        self._say(messages.Attending(job=job, is_over=False))
        num_threads = self._trainer.num_threads if self._device.type == "cpu" else None
        try:
            with self._trainer.settings.around_foreign_code(self._device, num_threads):
                yield
        finally:
            self._say(messages.Attending(job=job, is_over=True))

    def _maybe_checkpoint(self, resident: Resident) -> None:
        member, every = resident.member, resident.member.spec.checkpoint.every_steps
        if every is not None:
            is_due = member.progress.step % every == 0
        else:
            is_due = time.monotonic() - resident.last_checkpoint >= CHECKPOINT_SECONDS
        if is_due and not member.is_done:
            self._checkpoint(member.name)

    def _checkpoint(self, job: str, *, is_leaving: bool = False) -> bool:
        """Write a checkpoint; False, with a report, if the disk refuses: no reason for the job to end."""
        resident = self._residents.get(job)
        if resident is None:
            return False
        if job == self._running:
            self._trainer.settle(resident.member)
        resident.last_checkpoint = time.monotonic()
        try:
            step = save_checkpoint(resident.member, resident.checkpoints)
        except OSError as error:
            self._say(messages.CheckpointFailed(job=job, reason=_one_line(error), is_staying=is_leaving))
            return False
        self._say(messages.Checkpointed(job=job, step=step))
        return True

    def _evict(self, command: messages.Evict) -> None:
        if command.job not in self._residents or (command.keep and not self._checkpoint(command.job, is_leaving=True)):
            return
        resident = self._drop(command.job)
        self._is_stopping_turn |= command.job == self._running
        self._say(messages.Evicted(job=command.job, step=resident.member.progress.step))

    def _drop(self, job: str) -> Resident:
        resident = self._residents.pop(job)
        self._hybrid.drop(job)
        submission = resident.member.submission
        self._release_data(submission.train.key, None if submission.test is None else submission.test.key)
        trim_memory()
        return resident

    def _release_data(self, *keys: str | None) -> None:
        for key in filter(None, keys):
            self._pool.release(key)

    def _return(self, resident: Resident) -> None:
        """Separate a finished member; its files are written and verified while the others train."""
        member = resident.member
        try:
            with self._foreign_code(member.name):
                departure = depart(member, resident.results)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the job's own model, on its way out
            self._fail(resident, *_reason_and_log(member, error))
            return
        self._drop(member.name)
        self._departing[member.name] = departure
        threading.Thread(target=self._write, args=(departure,), daemon=True).start()

    def _write(self, departure: Departure) -> None:
        try:
            write_departure(departure)
            self._inbox.put(lambda: self._verify(departure))
        except Exception as error:  # noqa: BLE001 - a full disk, say: reported below, from the main thread
            failure = error
            self._inbox.put(lambda: self._fail_departure(departure, failure))

    def _verify(self, departure: Departure) -> None:
        try:
            with self._foreign_code(departure.name):
                returned = verify_departure(departure)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a result that does not hold is a failure of that job
            self._fail_departure(departure, error)
            return
        del self._departing[departure.name]
        self._say(returned)

    def _fail_departure(self, departure: Departure, error: BaseException) -> None:
        del self._departing[departure.name]
        self._say(messages.Failed(job=departure.name, reason=_one_line(error), step=departure.step))

    def _fail(self, resident: Resident, reason: str, log: str) -> None:
        member = resident.member
        self._drop(member.name)
        with contextlib.suppress(OSError):
            resident.results.mkdir(parents=True, exist_ok=True)
            (resident.results / "job.log").write_text(log)
        self._say(messages.Failed(job=member.name, reason=reason, step=member.progress.step))

    def _report_progress(self, member: Member, loss: float) -> None:
        step = member.progress.step
        epoch = -(-step // member.order.steps_per_epoch)  # that of the last step, also right after its end
        self._say(messages.Progress(job=member.name, epoch=epoch, step=step, loss=loss))

    def _report_epoch(self, member: Member, row: dict[str, float]) -> None:
        self._say(messages.EpochEnded(job=member.name, row=row))

    def _say(self, report: messages.Report) -> None:
        # The main thread alone speaks, so reports are never interleaved.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._pipe.send(report)


def trim_memory() -> None:
    """Give the system back what a member that has left held; a no-op without glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def run(pipe: Connection, device: str, num_threads: int, first_core: int, deterministic: int) -> None:
    """Host a hybrid on ``device``; the entry point of a worker process."""
    if device == "cpu":
        use_threads(num_threads, first_core)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    Worker(pipe, torch.device(device), num_threads).serve()


def _dataset_budget(device: torch.device) -> int:
    """Return how much of a GPU whole datasets may take; the planner leaves it free (``planning.GPU_MEMORY_SHARE``)."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return free // 10


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, UnifiedError) else f"{type(error).__name__}: {text}"


def _reason_and_log(member: Member, error: BaseException) -> tuple[str, str]:
    failure = describe_failure(member, error)
    return failure.reason, failure.log
