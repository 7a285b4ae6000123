"""Named points at which a process can be made to die, stop or fail, for tests: ``UNIFIED_FAULT=point[@nth][:action]``.

Several are separated by commas. Without the variable, :func:`reach` does nothing. The action ``hold`` keeps the thread that is
at the point there while the others go on: it makes the file that ``UNIFIED_FAULT_HELD`` names, and waits until that is gone.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from unified.queue.errors import QueueError

#: Every point and where it is. The tests of crashes go through this table, so a point that is not in it cannot be reached.
CRASH_POINTS: dict[str, str] = {
    "submit.payload-written": "a submission's files are copied into incoming/.tmp-*, nothing is synchronised",
    "submit.payload-synced": "they are on the disk, under a name that nobody looks at",
    "submit.renamed": "they are called incoming/NAME.job; from here on the submission is durable",
    "ingest.validated": "an ingester has found nothing wrong with an entry",
    "ingest.before-commit": "the entry is measured and hashed, its row is about to be written",
    "ingest.committed": "the row is committed, the files still are in incoming/",
    "ingest.moved": "the files are jobs/ID/spec",
    "store.before-commit": "any transaction of the store that writes, just before its commit",
    "store.committed": "and just after",
    "checkpoint.before-write": "a worker is about to write a checkpoint",
    "checkpoint.written": "its file is durable",
    "checkpoint.before-row": "the supervisor is about to make it current",
    "checkpoint.row": "it is current",
    "result.written": "a worker has written a result into the job's own folder",
    "publish.before-commit": "the supervisor is about to call the job finished",
    "publish.committed": "the job is finished, its result not yet in results/",
    "publish.renamed": "the result is results/ID",
}

_ERRNOS = ("ENOSPC", "EIO", "EROFS")


class FaultSettingError(QueueError):
    """``UNIFIED_FAULT`` names a point or an action that there is not."""

    code = "fault-setting"


def reach(point: str) -> None:
    """Say that the process is at ``point`` of :data:`CRASH_POINTS`; what the environment asked for happens here.

    Raises:
        OSError: If the environment asks for one.
    """
    if _FAULTS:
        _act(point)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens at a point: at its ``nth`` time, or at every time if None. ``times`` counts them."""

    point: str
    nth: int | None
    act: Callable[[], None]
    times: count[int]


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Return what ``UNIFIED_FAULT=text`` asks for.

    Without ``@nth``, a process is killed or stopped the first time, and an error is raised every time.

    Raises:
        FaultSettingError: If there is no such point or action.

    Example:
        >>> [fault] = parse_faults("ingest.committed@2:kill")
        >>> fault.point, fault.nth
        ('ingest.committed', 2)
    """
    return tuple(_fault(part.strip()) for part in text.split(",") if part.strip())


def _fault(text: str) -> Fault:
    where, _, action = text.partition(":")
    point, _, nth = where.partition("@")
    if point not in CRASH_POINTS:
        raise FaultSettingError(f"UNIFIED_FAULT: there is no point {point!r}; use one of {', '.join(CRASH_POINTS)}")
    if nth and not (nth.isascii() and nth.isdecimal() and int(nth) > 0):
        raise FaultSettingError(f"UNIFIED_FAULT: expected a number from 1 on after '{point}@', got {nth!r}")
    return Fault(point=point, nth=int(nth) if nth else _usual_time(action), act=_action(action), times=count(1))


def _usual_time(action: str) -> int | None:
    return None if action in _ERRNOS else 1


def _action(name: str) -> Callable[[], None]:
    if name in ("", "kill"):
        return partial(_signal_self, signal.SIGKILL)
    if name == "stop":
        return partial(_signal_self, signal.SIGSTOP)
    if name == "hold":
        return _hold
    if name in _ERRNOS:
        return partial(_fail, name)
    raise FaultSettingError(f"UNIFIED_FAULT: there is no action {name!r}; use kill, stop, hold, {', '.join(_ERRNOS)}")


def _signal_self(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def _hold() -> None:
    held = Path(os.environ["UNIFIED_FAULT_HELD"])
    held.touch()
    while held.exists():
        time.sleep(0.01)


def _fail(name: str) -> None:
    number = getattr(errno, name)
    raise OSError(number, f"{os.strerror(number)} (asked for by UNIFIED_FAULT)")


def _act(point: str) -> None:
    assert point in CRASH_POINTS, f"{point} is missing in CRASH_POINTS"
    for fault in _FAULTS:
        if fault.point == point and fault.nth in (None, next(fault.times)):
            fault.act()


_FAULTS = parse_faults(os.environ.get("UNIFIED_FAULT", ""))
