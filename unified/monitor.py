"""Samples what the run takes of the machine: memory of all its processes, or of the GPU, and utilisation. Free of torch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from unified import events
from unified.device import gpu_memory, gpu_utilisation, pss_bytes
from unified.nursery import Nursery
from unified.slots import Slot


@dataclass(slots=True, kw_only=True)
class Monitor:
    """Emits :class:`~unified.events.MemorySampled` every so many ``seconds``; a sample costs milliseconds per process.

    Attributes:
        nursery: Its process counts too.
        slots: Returns the slots of the moment.
        devices: What the run trains on.
        seconds: Between two samples.
    """

    nursery: Nursery
    slots: Callable[[], list[Slot]]
    devices: tuple[str, ...]
    seconds: float = 1.0
    _last: float = -math.inf

    def sample_if_due(self, now: float, emit: Callable[[events.Event], None]) -> None:
        """Sample unless that was done just now."""
        if now - self._last >= self.seconds:
            self.sample(now, emit)

    def sample(self, now: float, emit: Callable[[events.Event], None]) -> None:
        """Sample now."""
        self._last = now
        if self.devices == ("cpu",):
            workers = [slot.child.pid for slot in self.slots() if slot.child is not None]
            in_use, utilisation = pss_bytes([os.getpid(), self.nursery.pid, *workers]), psutil.cpu_percent()
        else:
            memory = [gpu_memory(device) for device in self.devices]
            in_use = sum(size.total_bytes - size.available_bytes for size in memory if size is not None)
            utilisation = gpu_utilisation(self.devices[0])
        emit(events.MemorySampled(at=now, bytes_in_use=in_use, utilisation=utilisation))
