"""The process that hosts one hybrid on one slot: it obeys the engine's commands between two steps, never inside one.

Commands are handled at step boundaries also while a member trains, so any member can be hosted, checkpointed or evicted
without touching the one whose turn it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection

import torch

from unified import messages
from unified.budgets import Fault, is_of_disk
from unified.checkpoint import restore_checkpoint, restore_first
from unified.cores import use_threads
from unified.datasets import DatasetPool
from unified.errors import InvalidSubmission
from unified.hybrid import HybridModule
from unified.member import Member
from unified.queue.faults import reach
from unified.residents import Resident, Saver, one_line
from unified.returning import Departure, depart, verify_departure, write_departure
from unified.sandbox import Confinement, confine
from unified.stack_probe import Probe
from unified.stack_trainer import StackHooks, StackTerms, StackTurn
from unified.stepping import Failure, Hooks, TurnReport, describe_failure, fault_of
from unified.submission.models import load_unchanged
from unified.trainer import Trainer

MAX_PROBES = 32  #: of stacks whose turns alternate; the ones that had none for longest are begun anew
MAX_LOG_CHARACTERS = 20_000


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
        self._epochs: dict[str, int] = {}
        self._saver = Saver(say=self._say, later=self._inbox.put)
        self._turn: StackTurn | None = None
        self._probes: dict[tuple[str, ...], Probe] = {}
        self._is_stopping_turn = self._is_preempting = False
        self._is_shutting_down = False
        self._stack_hooks = StackHooks(
            each=Hooks(between_steps=self._between_steps, on_progress=self._report_progress, on_epoch=self._report_epoch),
            on_out=self._end_turn,
            on_left=lambda member: self._let_go(member.name),
            on_formed=self._report_formed,
            on_refused=self._report_refused,
        )

    def serve(self) -> None:
        """Obey commands until told to shut down, or until the engine is gone."""
        threading.Thread(target=self._listen, daemon=True).start()
        while not (self._is_shutting_down and not self._departing):
            self._obey(self._inbox.get())
        self._saver.finish()

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
            case messages.JoinTurn():
                self._join_turn(command.job)
            case messages.EndTurn():
                self._is_stopping_turn = self._is_preempting = self._turn is not None
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
        self._epochs[submission.name] = command.epoch
        try:
            with self._foreign_code(submission.name):
                member, damaged = self._build(command)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the job's own model, data or checkpoint: it fails alone
            fault = Fault.INVALID if isinstance(error, InvalidSubmission) else fault_of(error)
            self._say(messages.Failed(job=submission.name, reason=one_line(error), step=0, fault=fault, log=_traceback(error)))
            return
        self._residents[submission.name] = Resident(member=member, command=command, last_checkpoint=time.monotonic())
        self._say(messages.Hosted(job=submission.name, step=member.progress.step, damaged=damaged))

    def _build(self, command: messages.Host) -> tuple[Member, tuple[str, ...]]:
        submission, damaged = command.submission, ()
        module = load_unchanged(submission.model, job=submission.name).to(self._device)
        train = self._pool.get(submission.train)
        test = None if submission.test is None else self._pool.get(submission.test)
        self._hybrid.add(submission.name, module)
        try:
            member = Member(submission, module, train, test, self._device)
            if command.restore_from is None:
                restore_checkpoint(member, command.checkpoints)
            else:
                damaged = tuple(path.name for path in restore_first(member, command.restore_from))
        except BaseException:
            self._hybrid.drop(submission.name)
            self._release_data(submission.train.key, None if submission.test is None else submission.test.key)
            raise
        return member, damaged

    def _run_turn(self, command: messages.RunTurn) -> None:
        assert self._turn is None, "turns do not nest"
        names = [name for name in (command.job, *command.companions) if name in self._residents]
        if not names:
            return  # it failed or was evicted while the command was under way; the engine has been told
        self._is_stopping_turn, self._is_preempting = self._is_shutting_down, False
        terms = StackTerms(
            least_speedup=command.least_speedup,
            speedup=command.speedup,
            probe=self._probe_of(names) if command.companions else None,
        )
        self._turn = StackTurn(self._trainer, command.quantum, self._stack_hooks, terms)
        for name in names:
            self._turn.join(self._residents[name].member)
        self._turn.run()
        self._turn = None

    def _probe_of(self, names: Sequence[str]) -> Probe:
        """Return what is measured of these jobs as a stack, over several turns if these are short."""
        probe = self._probes.pop(tuple(names), None) or Probe()
        self._probes[tuple(names)] = probe
        while len(self._probes) > MAX_PROBES:
            del self._probes[next(iter(self._probes))]
        return probe

    def _end_turn(self, member: Member, report: TurnReport) -> None:
        resident = self._residents[member.name]
        if report.failure is not None:
            self._fail(resident, report.failure)
            return
        self._say(
            messages.TurnEnded(
                job=member.name,
                step=member.progress.step,
                steps=report.steps,
                seconds=report.seconds,
                done=member.is_done,
                peak_bytes=member.peak_bytes,
                is_preempted=self._is_preempting and not member.is_done,
            )
        )
        if member.is_done:
            self._return(resident)

    def _join_turn(self, job: str) -> None:
        if job not in self._residents:
            return  # as for a turn
        member = self._residents[job].member
        if self._turn is None:
            self._end_turn(member, TurnReport(steps=0, seconds=0.0, failure=None))
        else:
            self._turn.join(member)

    def _report_formed(self, members: Sequence[Member], speedup: float) -> None:
        names = tuple(member.name for member in members)
        self._say(messages.StackFormed(job=names[0], members=names, speedup=speedup))

    def _report_refused(self, members: Sequence[Member], reason: str, speedup: float | None) -> None:
        names = tuple(member.name for member in members)
        self._say(messages.StackRefused(job=names[0], members=names, reason=reason, speedup=speedup))

    def _between_steps(self) -> bool:
        """Obey what has arrived; True if the running turn has to end."""
        assert self._turn is not None, "a turn is under way"
        for member in self._turn.members:
            if self._residents[member.name].is_checkpoint_due:
                self._checkpoint(member.name)
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

    def _checkpoint(self, job: str, *, is_leaving: bool = False) -> bool:
        resident = self._residents.get(job)
        if resident is None:
            return False
        if self._turn is not None and resident.member in self._turn.members and not self._turn.settle(resident.member):
            return False  # it fails instead
        return self._saver.save(resident, is_leaving=is_leaving)

    def _evict(self, command: messages.Evict) -> None:
        if command.job not in self._residents or (command.keep and not self._checkpoint(command.job, is_leaving=True)):
            return
        member = self._residents[command.job].member
        if self._turn is not None and self._turn.is_in(member):
            self._turn.leave(member)  # it is let go at the end of this step boundary: till then it is in use
        else:
            self._let_go(command.job)

    def _let_go(self, job: str) -> None:
        """Drop a job and say so when its memory is free."""
        step = self._residents[job].member.progress.step
        self._drop(job)
        self._say(messages.Evicted(job=job, step=step))

    def _drop(self, job: str) -> None:
        submission = self._residents.pop(job).member.submission
        self._hybrid.drop(job)
        self._release_data(submission.train.key, None if submission.test is None else submission.test.key)
        gc.collect()  # modules often refer to themselves
        trim_memory()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _release_data(self, *keys: str | None) -> None:
        for key in filter(None, keys):
            self._pool.release(key)

    def _return(self, resident: Resident) -> None:
        """Separate a finished member; its files are written and verified while the others train."""
        member = resident.member
        try:
            with self._foreign_code(member.name):
                departure = depart(member, resident.command.results)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the job's own model, on its way out
            self._fail(resident, describe_failure(member, error))
            return
        self._drop(member.name)
        self._departing[member.name] = departure
        threading.Thread(target=self._write, args=(departure,), daemon=True).start()

    def _write(self, departure: Departure) -> None:
        try:
            write_departure(departure)
            reach("result.written")
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
        reason, log = one_line(error), _traceback(error)
        fault = Fault.DISK if is_of_disk(error) else fault_of(error)
        self._say(messages.Failed(job=departure.name, reason=reason, step=departure.step, fault=fault, log=log))

    def _fail(self, resident: Resident, failure: Failure) -> None:
        member, results = resident.member, resident.command.results
        self._drop(member.name)
        with contextlib.suppress(OSError):
            results.mkdir(parents=True, exist_ok=True)
            (results / "job.log").write_text(failure.log)
        step = member.progress.step
        log = failure.log[-MAX_LOG_CHARACTERS:]
        self._say(messages.Failed(job=member.name, reason=failure.reason, step=step, fault=failure.fault, log=log))

    def _report_progress(self, member: Member, loss: float) -> None:
        step = member.progress.step
        epoch = -(-step // member.order.steps_per_epoch)  # that of the last step, also right after its end
        self._say(messages.Progress(job=member.name, data_epoch=epoch, step=step, loss=loss))

    def _report_epoch(self, member: Member, row: dict[str, float]) -> None:
        self._say(messages.EpochEnded(job=member.name, row=row))

    def _say(self, report: messages.Report) -> None:
        # The main thread alone speaks, so reports are never interleaved.
        report = replace(report, epoch=self._epochs.get(report.job, 0))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._pipe.send(report)


def trim_memory() -> None:
    """Give the system back what a member that has left held; a no-op without glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def run(pipe: Connection, device: str, num_threads: int, first_core: int, deterministic: int, confinement: str) -> None:
    """Host a hybrid on ``device``; the entry point of a worker process."""
    if confinement:
        confine(Confinement.from_json(confinement))  # before there are threads
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


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-MAX_LOG_CHARACTERS:]
