"""How long variants take on the device at hand: to load, cold and warm, and to infer, for each batch size."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.timer import Clock, Marks, StagedRun, recorder_for, stage_seconds, time_interleaved
from serving.profiles import Latency

MIN_ROUNDS = 10  #: of three runs each, where time allows: a 95th percentile of fewer says nothing
PRECISION = 0.02  #: relative standard error of every median at which measuring ends early
NUM_LOADS = 3
REFERENCE_RUNS = 50
_TICK_SECONDS = 0.25

Load = Callable[[], nn.Module]
Tick = Callable[[float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTimes:
    """Medians from the beginning of loading to the first answer; see :class:`serving.profiles.Profile`."""

    cold_ms: float
    warm_ms: float
    is_cold: bool


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Use so many intra-op threads in the calling thread for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def time_loads(load: Load, folder: Path, sample: Sequence[Tensor], device: torch.device) -> LoadTimes:
    """Measure how long it takes until a network that is not on the device has given its first answer.

    The first answer is part of it: it reads weights that were only mapped, and makes what later runs find ready. Warm means
    from host memory: for the CPU that is a file in the page cache, since a network in memory is on that device already.

    Args:
        load: Returns the network, on the CPU, from its files.
        folder: Where these are.
        sample: One row of each input, on the CPU.
        device: Where to.
    """

    def seconds(made: Load) -> float:
        begin = time.perf_counter()
        network = made().to(device)
        for output in network(*(tensor.to(device) for tensor in sample)).values():
            output.cpu()
        return time.perf_counter() - begin

    cold, warm, dropped = [], [], []
    with torch.inference_mode():
        for _ in range(NUM_LOADS):
            dropped.append(drop_cached(folder))
            cold.append(seconds(load))
            network = load() if device.type != "cpu" else None
            warm.append(seconds(load if network is None else lambda network=network: network))
    return LoadTimes(cold_ms=float(np.median(cold)) * 1e3, warm_ms=float(np.median(warm)) * 1e3, is_cold=all(dropped))


def drop_cached(folder: Path) -> bool:
    """Drop the files of a folder from the page cache; return whether that was so."""
    if _dropped(folder):
        return True
    gc.collect()  # pages that are mapped stay, and networks may be held by cycles
    return _dropped(folder)


def _dropped(folder: Path) -> bool:
    if not hasattr(os, "posix_fadvise") or not hasattr(os, "RWF_NOWAIT"):
        return False
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)  # pages that are not on disk yet would stay
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            if os.preadv(handle, [bytearray(1)], 0, os.RWF_NOWAIT):
                return False
        except BlockingIOError:
            continue  # it would have to be read from the disk: it is out
        except OSError:
            return False  # this file system cannot say
        finally:
            os.close(handle)
    return True


def time_inference(
    networks: Mapping[str, nn.Module],
    inputs: Mapping[int, Sequence[Tensor]],
    device: torch.device,
    *,
    max_seconds: float,
    tick: Tick | None = None,
    clock: Clock = time.perf_counter,
) -> tuple[dict[str, tuple[Latency, ...]], Latency]:
    """Measure warm inference of networks, which take turns with all batch sizes: a slow spell meets all alike.

    The reference takes turns with them and comes second. A run copies the inputs to the device, calls the network and has the
    outputs in host memory at its end.

    Args:
        networks: By any name, in eval mode, on the device.
        inputs: By batch size, on the CPU.
        device: Where the networks are.
        max_seconds: For all together. Each batch size of each network is measured at least once.
        tick: Is told the seconds that have passed, now and then.
        clock: For the limit and the ticks.
    """
    batches = sorted(inputs)
    begin = last = clock()

    def runs() -> Iterator[StagedRun]:
        for network in networks.values():
            for rows in batches:
                yield _run(network, inputs[rows], device)
        yield _whole(reference_work(device))

    def ticking(run: StagedRun) -> StagedRun:
        def wrapped(marks: Marks) -> None:
            nonlocal last
            run(marks)
            now = clock()
            if tick is not None and now - last >= _TICK_SECONDS:
                last = now
                tick(now - begin)

        return wrapped

    measured = stage_seconds(
        [ticking(run) for run in runs()],
        max_seconds=max_seconds,
        min_runs=MIN_ROUNDS * 3,
        warmup=2,
        precision=PRECISION,
        recorder=recorder_for(device),
        clock=clock,
    )
    found = iter(measured)
    latencies = {name: tuple(_latency(rows, next(found)) for rows in batches) for name in networks}
    return latencies, _latency(1, next(found))


def _run(network: nn.Module, inputs: Sequence[Tensor], device: torch.device) -> StagedRun:
    def run(marks: Marks) -> None:
        marks.mark()
        there = [tensor.to(device, copy=True) for tensor in inputs]
        marks.mark()
        for output in network(*there).values():
            output.cpu()
        marks.mark()

    return run


def _whole(work: Callable[[], object]) -> StagedRun:
    def run(marks: Marks) -> None:
        marks.mark()
        work()
        marks.mark()

    return run


def _latency(rows: int, runs: Sequence[Sequence[float]]) -> Latency:
    milliseconds = np.asarray(runs) * 1e3  # runs, stages
    middle, high = np.percentile(milliseconds.sum(1), [50, 95])
    return Latency(
        rows=rows,
        p50_ms=float(middle),
        p95_ms=float(high),
        copy_ms=float(np.median(milliseconds[:, 0])),
        num_runs=len(runs),
    )


def time_reference(device: torch.device) -> float:
    """Return the median milliseconds of the reference, which tells how fast the machine is just now."""
    [timing] = time_interleaved([reference_work(device)], max_seconds=2, min_runs=REFERENCE_RUNS, precision=1, device=device)
    return timing.median_seconds * 1e3


def reference_work(device: torch.device) -> Callable[[], None]:
    """Return a fixed piece of work, a convolution and matrix products."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 16, 32, 32, generator=generator).to(device)
    kernels = torch.rand(32, 16, 3, 3, generator=generator).to(device)
    matrix = torch.rand(256, 256, generator=generator).to(device)

    def work() -> None:
        F.conv2d(images, kernels).relu().mean().cpu()
        (matrix @ matrix @ matrix).mean().cpu()

    return work
