"""Samples what the run takes of the machine: memory of all its processes, or of the GPU, and utilisation. Free of torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from unified import events
from unified.device import gpu_memory, gpu_utilisation, pss_bytes
from unified.nursery import Nursery
from unified.slots import Slot

SAMPLE_SECONDS = 1.0


@dataclass(slots=True, kw_only=True)
class Monitor:
    """Emits :class:`~unified.events.MemorySampled` about once a second.

    Attributes:
        nursery: Its process counts too.
        slots: Returns the slots of the moment.
        devices: What the run trains on.
    """

    nursery: Nursery
    slots: Callable[[], list[Slot]]
    devices: tuple[str, ...]
    _last: float = -SAMPLE_SECONDS

    def sample_if_due(self, now: float, emit: Callable[[events.Event], None]) -> None:
        """Sample unless that was done less than a second ago."""
        if now - self._last >= SAMPLE_SECONDS:
            self.sample(now, emit)

    def sample(self, now: float, emit: Callable[[events.Event], None]) -> None:
        """Sample now. Costs a few milliseconds per process."""
        self._last = now
        if self.devices == ("cpu",):
            workers = [slot.child.pid for slot in self.slots() if slot.child is not None]
            in_use, utilisation = pss_bytes([os.getpid(), self.nursery.pid, *workers]), psutil.cpu_percent()
        else:
            memory = [gpu_memory(device) for device in self.devices]
            in_use = sum(size.total_bytes - size.available_bytes for size in memory if size is not None)
            utilisation = gpu_utilisation(self.devices[0])
        emit(events.MemorySampled(at=now, bytes_in_use=in_use, utilisation=utilisation))
