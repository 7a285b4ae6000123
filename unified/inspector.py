"""The short-lived process that reads job folders, each in a child process of its own.

What reading needs (fake tensors, sympy behind them, ``datasets``, ``transformers``) is imported here once and goes with this
process, so workers stay small. It never looks at a job itself: it forks, and the child reads under limits of time and memory
and sends what it found, or dies of what it read.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import traceback
from importlib import import_module
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from unified import inspection
from unified.admission import ModelForm, ModelRef, Submission
from unified.errors import Problem, ReportError
from unified.messages import Inspect, Inspected, StepsTimed, TimeSteps
from unified.parent_death import die_with_parent
from unified.quantities import seconds_text
from unified.read_limits import ReadLimits, apply_limits
from unified.reports import receive
from unified.sandbox import confine, reading_confinement
from unified.tensor_files import remove_unfinished

#: Imported by a child for a job that needs them, and from then on by this process, so that the next child has them.
_LARGE_MODULES = ("datasets", "transformers")

#: Deaths that are the job's own doing, as it would die of them anywhere.
_OWN_DEATHS = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL})

Request = Inspect | TimeSteps
Answer = tuple[Inspected, ...] | StepsTimed


class _ChildLostError(Exception):
    """A child was killed by somebody else, or for want of memory."""


def run(pipe: Connection, num_threads: int) -> None:
    """Answer requests until the pipe closes; the entry point of the process."""
    # A step that cannot be done is told as a problem; its traceback would only come twice.
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL + 1)
    while True:
        request = pipe.recv()
        pipe.send(_answer_in_child(request, num_threads))


def _answer_in_child(request: Request, num_threads: int) -> Answer:
    """Fork a child that answers; a child that exceeded a limit or crashed is told as that job's problem.

    Raises:
        _ChildLostError: If it was killed from outside: this process then ends, too, and the job may be read again.
    """
    limits = request.limits
    receiver, sender = Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        receiver.close()
        _become_reader(request, num_threads, sender)
    sender.close()
    with receiver:
        is_late = not receiver.poll(limits.wall_seconds)
        said = None if is_late else _hear(receiver, request)
    if is_late:
        os.kill(pid, signal.SIGKILL)  # it is ours to collect, so there is nobody else of that number
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    if isinstance(request, Inspect):
        # one that was killed has cleared nothing away; until it is collected its number is its own
        remove_unfinished(request.cache, pid)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if said is None:
        return _refused(request, _why_it_ended(code, limits, timed_out=is_late))
    answer, imported = said
    for name in _LARGE_MODULES:
        if name in imported:
            import_module(name)
    return answer


def _hear(receiver: Connection, request: Request) -> tuple[Answer, list[str]] | None:
    """Return what the child sent, None if it died before or somebody's code in it sent what is no answer."""
    try:
        match receive(receiver, tuple):
            case (StepsTimed() as answer, list(imported)) if isinstance(request, TimeSteps):
                return answer, imported
            case ((_, *_) as answer, list(imported)) if isinstance(request, Inspect) and _can_be_found(answer, request):
                return answer, imported
    except (EOFError, OSError, ReportError):
        pass
    return None


def _can_be_found(answer: tuple[Any, ...], request: Inspect) -> bool:
    """Whether reading a job may have this answer.

    A pickled object of the Python API's own caller is loaded in a process that others share, so no other job may pass for one.
    """
    if not all(isinstance(each, Inspected) and isinstance(each.submission, Submission | None) for each in answer):
        return False
    models = [each.submission.model for each in answer if each.submission is not None]
    return all(isinstance(model, ModelRef) and (request.staged or model.form is not ModelForm.OBJECT) for model in models)


def _why_it_ended(code: int, limits: ReadLimits, *, timed_out: bool) -> tuple[str, str, str]:
    """Return code, what was expected and what came of a child that ended without an answer."""
    if timed_out:
        return "E-LIMIT", f"a job that is read within {seconds_text(limits.wall_seconds)}", "one that takes longer"
    if code == -signal.SIGXCPU:
        return "E-LIMIT", f"a job that is read within {seconds_text(limits.cpu_seconds)} of CPU time", "one that takes longer"
    if code >= 0 or -code in _OWN_DEATHS:
        how = f"code {code}" if code >= 0 else signal.Signals(-code).name
        return "E-CRASH", "a model that can be read and takes a training step", f"one that ended its process with {how}"
    raise _ChildLostError(f"the child that read the job was killed by signal {-code}")


def _refused(request: Request, why: tuple[str, str, str]) -> Answer:
    code, expected, given = why
    if isinstance(request, TimeSteps):
        return StepsTimed(job=request.submission.name, step_seconds=None)
    problem = Problem(
        code=code,
        job=request.folder.name,
        field="folder",
        expected=expected,
        given=given,
        remedy="try one training step of the model on one batch of this data in a process of its own",
    )
    return (Inspected(folder=request.folder, submission=None, problems=(problem,), step_seconds=None),)


def _readable(request: Inspect) -> tuple[Path, ...]:
    """Return the folders in which a job's files may be, as :mod:`unified.inspection` resolves them."""
    return (request.folder.parent, *request.data_roots)


def _become_reader(request: Request, num_threads: int, sender: Connection) -> None:
    """Answer in this fresh child and end the process with it."""
    code = 1
    try:
        die_with_parent()
        apply_limits(request.limits)
        if isinstance(request, Inspect):
            confine(reading_confinement(_readable(request), request.cache, mode=request.sandbox))
        before = {name for name in _LARGE_MODULES if name in sys.modules}
        answer = inspection.answer(request, num_threads)
        imported = [name for name in _LARGE_MODULES if name in sys.modules and name not in before]
        sender.send_bytes(pickle.dumps((answer, imported)))
        code = 0
    except BaseException:  # noqa: BLE001 - the last border of a process: say what happened, then end it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
