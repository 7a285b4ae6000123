"""Bringing variants to the device: one at a time, shared by all who need them, within the budget."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from serving.errors import ServingError
from serving.fitting import output_problems
from serving.runtime.events import Event, Evicted, Loaded
from serving.runtime.residency import Residency, Resident
from serving.runtime.running import run_batch
from serving.runtime.snapshot import Servable


class Loader:
    """Loads variants in a thread of its own; everything else happens in the event loop's thread."""

    def __init__(
        self,
        load: Callable[[str], nn.Module],
        residency: Residency,
        *,
        device: torch.device,
        threads: int,
        host_cache_bytes: int,
        tell: Callable[[Event], None],
    ) -> None:
        self._load = load
        self._residency = residency
        self._device = device
        self._read: frozenset[str] = frozenset()
        self._host = HostCache(host_cache_bytes if device.type != "cpu" else 0)
        self._tell = tell
        self._tasks: dict[str, asyncio.Task[Resident]] = {}
        self._turn = asyncio.Lock()  # one load at a time, in the order in which they were asked for
        self._unused = asyncio.Event()
        self._has_room = asyncio.Event()  # not set while a load waits for others to leave
        self._has_room.set()
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="serving-loader", initializer=torch.set_num_threads, initargs=(threads,)
        )

    @property
    def warm(self) -> frozenset[str]:
        """Ids of the variants that load from memory: their files lie in the page cache, or their networks in the host's."""
        return self._read if self._device.type == "cpu" else self._host.ids

    async def load(self, servable: Servable) -> Resident:
        """Return a variant that is in use, as soon as it is on the device.

        Raises:
            ServingError: If its files are missing or altered.
            torch.OutOfMemoryError: If the device has no room even after others have left.
        """
        task = self._tasks.get(servable.id)
        if task is None:
            task = self._tasks[servable.id] = asyncio.create_task(self._bring(servable))
            task.add_done_callback(lambda done: self._ended(servable.id, done))
        return await asyncio.shield(task)

    async def let_pass(self) -> None:
        """Wait while a load waits for room: if what is there were used ever anew, it would never leave."""
        await self._has_room.wait()

    def released(self) -> None:
        """Take note that a variant is unused now, which may make room."""
        self._unused.set()

    def evict(self, variant: str) -> None:
        """Let a variant leave the device, and keep it in host memory if that has room."""
        resident = self._residency.evict(variant)
        if resident is not None:
            self._host.put(variant, resident)
            self._tell(Evicted(variant=variant))

    def forget(self, variant: str) -> None:
        """Drop a variant that is not to be served any more from the device and from host memory."""
        self._residency.evict(variant)
        self._host.take(variant)

    def close(self) -> None:
        """End the thread, after what it does now."""
        for task in self._tasks.values():
            task.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _bring(self, servable: Servable) -> Resident:
        async with self._turn:
            resident = self._residency.find(servable.id)
            if resident is None:
                is_warm = servable.id in self.warm
                network = self._host.take(servable.id)  # before what leaves the device for it takes its place
                await self._make_room(servable.num_bytes)
                resident = await self._bring_now(servable, network, is_warm=is_warm)
            return resident

    async def _make_room(self, num_bytes: int) -> None:
        try:
            while (leaving := self._residency.room_for(num_bytes)) is None:
                self._has_room.clear()
                self._unused.clear()
                await self._unused.wait()
        finally:
            self._has_room.set()
        for variant in leaving:
            self.evict(variant)

    async def _bring_now(self, servable: Servable, network: nn.Module | None, *, is_warm: bool) -> Resident:
        started = time.monotonic()
        self._residency.expect(servable.id, servable.num_bytes, started + servable.load_seconds(warm=is_warm))
        resident = None
        try:
            module = await self._to_device(servable, network)
            resident = Resident(servable=servable, module=module)
        finally:
            self._read |= {servable.id}
            self._residency.arrived(servable.id, resident)
        self._tell(Loaded(variant=servable.id, seconds=time.monotonic() - started, warm=is_warm))
        return resident

    async def _to_device(self, servable: Servable, network: nn.Module | None) -> nn.Module:
        def work() -> nn.Module:
            module = (self._load(servable.id) if network is None else network).to(self._device)
            _try_out(module, servable, self._device)
            return module

        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, work)
        except torch.OutOfMemoryError:
            for other in self._residency.evictable():
                self.evict(other)
            return await loop.run_in_executor(self._thread, work)

    def _ended(self, variant: str, task: asyncio.Task[Resident]) -> None:
        del self._tasks[variant]
        if not task.cancelled():
            task.exception()  # told to whoever still waits for it; nobody may


def _try_out(module: nn.Module, servable: Servable, device: torch.device) -> None:
    """Run a network once: what is set up in a first run is part of loading, as it is in a profile."""
    (ran,) = run_batch(module, [servable.example], device)
    tasks = [servable.table.family.task(task) for task in servable.variant.tasks]
    problem = ran.error or "; ".join(output_problems(tasks, ran.outputs or {}, len(servable.example[0])))
    if problem:
        raise ServingError(
            f"variant {servable.name!r} ({servable.id}) fails on the family's own example: {problem}"
        ) from ran.error


class HostCache:
    """Networks in host memory, within a budget of bytes; the least recently used goes first."""

    def __init__(self, num_bytes: int) -> None:
        self._budget = num_bytes
        self._kept: OrderedDict[str, Resident] = OrderedDict()

    @property
    def ids(self) -> frozenset[str]:
        """Ids of what it holds."""
        return frozenset(self._kept)

    def put(self, variant: str, resident: Resident) -> None:
        """Keep a network that has left the device, if it fits at all."""
        if resident.num_bytes > self._budget:
            return
        resident.module.to("cpu")
        self._kept[variant] = resident
        while sum(kept.num_bytes for kept in self._kept.values()) > self._budget:
            self._kept.popitem(last=False)

    def take(self, variant: str) -> nn.Module | None:
        """Return a network and keep it no longer; None if it is not there."""
        kept = self._kept.pop(variant, None)
        return None if kept is None else kept.module
