"""The ticker: does what is to be done every few seconds, and notices when that does not happen. Never holds a job.

APScheduler goes by the wall clock, so a clock that is set back would silence it; whoever calls :meth:`Ticker.run_late` now and
then puts that right, and takes over what its threads do not get done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from threading import Lock

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

_log = logging.getLogger(__name__)

LATE_INTERVALS = 3  #: a tick that has not succeeded for so many of its intervals is late
JUMP_SECONDS = 1.0  #: by so much the wall clock may drift against the monotonic one between two looks


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Something to do every ``seconds``.

    ``run`` must do no harm when it runs more often, later, or in another thread. Ticks without a thread of their own share one,
    so one of them holds up the others.
    """

    name: str
    seconds: float
    run: Callable[[], None]
    own_thread: bool = False


class Ticker:
    """Runs ticks in the background: each at once and then every so many seconds, none twice at the same time.

    Args:
        ticks: What to do.
        on_ok: Told the name of each tick that succeeded, in the thread where it ran.
        monotonic: Clock that decides what is late.
        wall: Clock for display.
    """

    def __init__(
        self,
        ticks: Sequence[Tick],
        *,
        on_ok: Callable[[str], None] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._on_ok = on_ok
        self._monotonic, self._wall = monotonic, wall
        self._watched = {tick.name: _Watched(tick=tick, last_ok=monotonic(), last_try=monotonic()) for tick in ticks}
        self._clock_offset = wall() - monotonic()
        self._is_stopped = False
        self._scheduler: BackgroundScheduler | None = None

    def start(self) -> None:
        """Begin; every tick runs at once for the first time."""
        logging.getLogger("apscheduler").setLevel(logging.ERROR)  # else two lines per tick, and one for each that takes long
        executors = {"default": ThreadPoolExecutor(1)}
        executors |= {name: ThreadPoolExecutor(1) for name, watched in self._watched.items() if watched.tick.own_thread}
        scheduler = BackgroundScheduler(
            timezone=UTC,
            executors=executors,
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        for name, watched in self._watched.items():
            where = name if watched.tick.own_thread else "default"
            scheduler.add_job(self._run, _Every(watched.tick.seconds), args=[watched], id=name, executor=where)
        self._scheduler = scheduler
        scheduler.start()

    def stop(self, timeout_seconds: float = 5.0) -> list[str]:
        """End; nothing new runs from now on. Not to be called by a tick.

        Returns:
            The ticks that still were under way after ``timeout_seconds``. The interpreter waits for them at its exit.
        """
        self._is_stopped = True
        if self._scheduler is not None:
            self._scheduler.shutdown(wait=False)
            self._scheduler = None
        deadline = time.monotonic() + timeout_seconds
        return [name for name, watched in self._watched.items() if not watched.wait(deadline - time.monotonic())]

    def last_ok(self) -> dict[str, float]:
        """Return when each tick last succeeded, in seconds since 1970; those that never did are left out."""
        return {name: watched.last_ok_wall for name, watched in self._watched.items() if watched.last_ok_wall is not None}

    def late(self, now: float | None = None) -> list[str]:
        """Return the ticks that did not succeed for three intervals before ``now``, a time of the monotonic clock."""
        now = self._monotonic() if now is None else now
        return [name for name, watched in self._watched.items() if watched.is_late(now)]

    def run_late(self) -> list[str]:
        """Run late ticks in the caller's thread, each at most once per interval, and none that is stuck halfway.

        To be called about every second.

        Returns:
            The ticks that were late.
        """
        self._heed_clock()
        now = self._monotonic()
        late = self.late(now)
        for name in late:
            watched = self._watched[name]
            if now - watched.last_try >= watched.tick.seconds:
                self._run(watched)
        return late

    def _heed_clock(self) -> None:
        """Start all intervals anew if the wall clock was set, so that none lasts as long as it was set back."""
        offset = self._wall() - self._monotonic()
        if abs(offset - self._clock_offset) > JUMP_SECONDS and self._scheduler is not None:
            _log.warning("the wall clock was set by %+.1f s; all ticks run now", offset - self._clock_offset)
            for name in self._watched:
                self._scheduler.modify_job(name, next_run_time=datetime.now(UTC))
        self._clock_offset = offset

    def _run(self, watched: _Watched) -> None:
        """Run a tick, unless another thread does; a failure of it is logged and is no failure of the ticker."""
        if self._is_stopped or not watched.under_way.acquire(blocking=False):
            return
        try:
            watched.last_try = self._monotonic()
            watched.tick.run()
            watched.last_ok, watched.last_ok_wall = self._monotonic(), self._wall()
            if self._on_ok is not None:
                self._on_ok(watched.tick.name)
            watched.note_success()
        except Exception as error:  # noqa: BLE001 - the next time may go better, and the others must go on
            watched.note_failure(error)
        finally:
            watched.under_way.release()


@dataclass(slots=True, kw_only=True)
class _Watched:
    """A tick and how it fares. ``last_ok`` and ``last_try`` are of the monotonic clock; ``error`` was logged last."""

    tick: Tick
    last_ok: float
    last_try: float
    last_ok_wall: float | None = None
    error: str | None = None
    under_way: Lock = field(default_factory=Lock)

    def is_late(self, now: float) -> bool:
        return now - self.last_ok > LATE_INTERVALS * self.tick.seconds

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until it is not under way; return whether that came true."""
        if not self.under_way.acquire(timeout=max(0.0, timeout_seconds)):
            return False
        self.under_way.release()
        return True

    def note_failure(self, error: Exception) -> None:
        """Log a failure once, not every second: a full disk would only become fuller."""
        text = f"{type(error).__name__}: {error}"
        if text != self.error:
            _log.error("tick %r failed and will run again: %s", self.tick.name, text, exc_info=error)
        self.error = text

    def note_success(self) -> None:
        if self.error is not None:
            _log.info("tick %r works again", self.tick.name)
        self.error = None


class _Every(BaseTrigger):
    """Now, and then so many seconds after each run.

    Unlike APScheduler's own interval this does not count the runs missed: after a jump of the clock by years, that would take
    minutes and gigabytes.
    """

    __slots__ = ("_interval",)

    def __init__(self, seconds: float) -> None:
        self._interval = timedelta(seconds=seconds)

    # pyrefly: ignore[bad-override] - its base class says nothing of types, and so promises None
    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """Return when to run next."""
        return now if previous_fire_time is None else now + self._interval
