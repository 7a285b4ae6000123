"""What the supervisor says of itself about once a second: ``status.json`` in the root. Free of torch."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import unified
from unified import events
from unified.conductor import Conductor
from unified.device import gpu_memory, host_memory, pss_bytes
from unified.job_state import JobState
from unified.nursery import Nursery
from unified.queue.root import Root
from unified.queue.store import JobStore
from unified.slots import Slot

MEMORY_SECONDS = 3.0  #: for which a slot's memory is not looked at again


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts since the supervisor's start; a listener."""

    slot_busy_seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    worker_restarts: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    checkpoints: int = 0
    checkpoint_seconds: float = 0.0
    checkpoint_failures: int = 0
    leases_expired: int = 0
    scheduler_errors: int = 0
    decision_seconds: float = 0.0
    memory_bytes: int | None = None
    utilisation: float | None = None

    def __call__(self, event: events.Event) -> None:
        """Count an event."""
        match event:
            case events.TurnEnded():
                self.slot_busy_seconds[str(event.slot)] += event.seconds
            case events.WorkerLost():
                self.worker_restarts[str(event.slot)] += 1
            case events.JobCheckpointed():
                self.checkpoints += 1
                self.checkpoint_seconds += event.seconds
            case events.CheckpointRefused():
                self.checkpoint_failures += 1
            case events.MemorySampled():
                self.memory_bytes, self.utilisation = event.bytes_in_use, event.utilisation
            case _:
                pass

    def to_json(self) -> dict[str, Any]:
        """Return the counts."""
        return {
            "worker_restarts": dict(self.worker_restarts),
            "slot_busy_seconds": dict(self.slot_busy_seconds),
            "rejected": dict(self.rejected),
            "checkpoints": self.checkpoints,
            "checkpoint_seconds": self.checkpoint_seconds,
            "checkpoint_failures": self.checkpoint_failures,
            "leases_expired": self.leases_expired,
            "scheduler_errors": self.scheduler_errors,
            "decision_seconds": self.decision_seconds,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusWriter:
    """Writes ``status.json``, atomically; it is news, not truth, and is not synchronised to the disk."""

    root: Root
    store: JobStore
    conductor: Conductor
    nursery: Nursery
    tally: Tally
    facts: Mapping[str, Any]
    _memory: dict[int, tuple[float, int | None]] = field(default_factory=dict)

    def write(self, *, ticks: Mapping[str, float], late: Sequence[str], is_draining: bool, is_exact: bool = False) -> None:
        """Write it now.

        Args:
            ticks: When each tick last succeeded.
            late: Those that did not run in time.
            is_draining: The supervisor is about to end.
            is_exact: Look at the slots' memory now, which takes milliseconds; else what was found a moment ago does.
        """
        if is_exact:
            self._memory.clear()
        content = {
            "schema": 1,
            **self.facts,
            "pid": os.getpid(),
            "time": time.time(),
            "version": unified.__version__,
            "slots": [self._slot(slot) for slot in self.conductor.slots],
            "memory_bytes": self.tally.memory_bytes,
            "memory_total_bytes": self._total_bytes(),
            "utilisation": self.tally.utilisation,
            "queued": self.store.counts().get(JobState.QUEUED, 0),
            "ticks": dict(ticks),
            "late": list(late),
            "is_draining": is_draining,
            "disk_free_bytes": _free_bytes(self.root.path),
            "counters": self.tally.to_json() | self._more_counters(),
        }
        partial = self.root.status.with_name("status.json.partial")
        partial.write_text(json.dumps(content))
        partial.replace(self.root.status)

    def _more_counters(self) -> dict[str, int]:
        errors = self.tally.scheduler_errors + self.conductor.decider.num_wrong
        return {"fenced_writes": self.store.fenced_writes, "scheduler_errors": errors}

    def _slot(self, slot: Slot) -> dict[str, Any]:
        pid = None if slot.child is None else slot.child.pid
        residents = self.conductor.books.ledger.resident(slot.index)
        state = "training" if slot.running else "starting" if any(record.is_hosting for record in residents) else "idle"
        return {
            "index": slot.index,
            "device": slot.device,
            "threads": slot.num_threads,
            "pid": pid,
            "state": state,
            "running": slot.running,
            "residents": [record.name for record in residents],
            "memory_bytes": self._memory_of(slot),
            "gain": self.conductor.placer.gain_of(slot),
        }

    def _memory_of(self, slot: Slot) -> int | None:
        looked, memory = self._memory.get(slot.index, (-math.inf, None))
        if time.monotonic() - looked < MEMORY_SECONDS:
            return memory
        if slot.device == "cpu":
            memory = None if slot.child is None else pss_bytes([slot.child.pid])
        else:
            size = gpu_memory(slot.device)
            memory = None if size is None else size.total_bytes - size.available_bytes
        self._memory[slot.index] = (time.monotonic(), memory)
        return memory

    def _total_bytes(self) -> int:
        sizes = [gpu_memory(slot.device) for slot in self.conductor.slots if slot.device != "cpu"]
        known = [size.total_bytes for size in sizes if size is not None]
        return sum(known) if known else host_memory().total_bytes


def _free_bytes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
