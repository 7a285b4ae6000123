"""One process of the stacking benchmark: measures the ways side by side, or the memory of one of them.

``python -m benchmarks.stacking_child times MODEL COUNT PHASE THREADS SECONDS`` prints a JSON object: for each way its seconds
per round, in turns with the others. ``… memory MODEL COUNT PHASE WAY`` prints the peak of the process, beyond what it held
before. ``… processes MODEL COUNT WORKERS SECONDS`` forks workers that train their share of the models at the same time, one
thread each: one model each is what N processes do, several each is a stack per core.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.stacking_models import Population, populate
from benchmarks.stacking_ways import MIN_GAIN, WAYS, Way, training_loop, training_stack

COMPARED_STEPS = 3
MIN_ROUNDS, MAX_ROUNDS = 5, 200
ROUND_SECONDS, MAX_REPEATS = 0.02, 50  #: a round repeats short steps for about so long
ASKED_BATCH = 1
MIN_PROBES, MAX_PROBES, PROBE_SECONDS = 7, 50, 0.3  #: as unified's own probe


def main() -> None:
    """Do what the arguments say."""
    what, *rest = sys.argv[1:]
    commands = {"times": _times, "memory": _memory, "processes": _processes}
    print(json.dumps(commands[what](*rest)))


def _times(name: str, count: str, phase: str, threads: str, seconds: str) -> dict[str, Any]:
    torch.set_num_threads(int(threads))
    people = _people(name, int(count), phase)
    ways, failed, differences = _made(people, phase)
    chosen = _choice(ways)
    rounds = _rounds(ways, chosen, float(seconds))
    return {
        "seconds": rounds,
        "notes": {key: way.note for key, way in ways.items()} | {"unified": "stacked" if chosen == "stack" else "side by side"},
        "tried": {key: way.seconds for key, way in ways.items()},
        "differences": differences,
        "failed": failed,
    }


def _people(name: str, count: int, phase: str) -> Population:
    return populate(name, count, batch_size=ASKED_BATCH if phase == "inference" else None)


def _made(people: Population, phase: str) -> tuple[dict[str, Way], dict[str, str], dict[str, float]]:
    """Make every way, and compare a few steps of each with the loop's; what cannot be made is told why."""
    ways: dict[str, Way] = {}
    failed: dict[str, str] = {}
    differences: dict[str, float] = {}
    reference = _after_steps(WAYS[phase]["loop"](people))
    for key, make in WAYS[phase].items():
        try:
            compared = (
                training_stack(people, width=len(people.models)) if (phase, key) == ("training", "stack") else make(people)
            )
            differences[key] = float((_after_steps(compared) - reference).abs().max())
            ways[key] = make(people)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            failed[key] = " ".join(str(error).split())[:200]
    return ways, failed, differences


def _after_steps(way: Way) -> torch.Tensor:
    for _ in range(COMPARED_STEPS):
        way.step()
    return way.result()


def _choice(ways: dict[str, Way]) -> str:
    """Return what unified goes on with: the stack where it was measured to pay, the models side by side otherwise."""
    times: dict[str, list[float]] = {"loop": [], "stack": []}
    while len(times["loop"]) < MIN_PROBES or (sum(times["loop"]) < PROBE_SECONDS and len(times["loop"]) < MAX_PROBES):
        for key, found in times.items():
            found.append(_timed(ways[key]))
    loop, together = (statistics.median(found) for found in times.values())
    return "stack" if loop > MIN_GAIN * together else "loop"


def _rounds(ways: dict[str, Way], chosen: str, seconds: float) -> dict[str, list[float]]:
    """Time all ways in turns; ``unified`` is the chosen one, measured again for itself."""
    runs = {**ways, "unified": ways[chosen]}
    times: dict[str, list[float]] = {key: [] for key in runs}
    repeats = max(1, min(MAX_REPEATS, round(ROUND_SECONDS / max(_timed(ways["loop"]), 1e-6))))
    order = random.Random(0)
    began = time.perf_counter()
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and time.perf_counter() - began > seconds:
            break
        # In another order each time and several steps at once: right behind the same way, with its data still in the cache,
        # the loop was up to a third faster than behind another.
        for key in order.sample(list(runs), len(runs)):
            runs[key].step()
            times[key].append(statistics.fmean(_timed(runs[key]) for _ in range(repeats)))
    return times


def _timed(way: Way) -> float:
    began = time.perf_counter()
    way.step()
    return time.perf_counter() - began


def _memory(name: str, count: str, phase: str, way: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    people = _people(name, int(count), phase)
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of what follows
    made = WAYS[phase][way](people)
    for _ in range(COMPARED_STEPS):
        made.step()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"peak_bytes": int(status["VmHWM"].split()[0]) * 1024 - before}


def _processes(name: str, count: str, workers: str, seconds: str) -> dict[str, Any]:
    """Let forked workers train at the same time; return the seconds that a step of all models took, at the steady pace."""
    context, num_workers = get_context("fork"), int(workers)
    barrier = context.Barrier(num_workers)
    pipes, children = [], []
    for index in range(num_workers):
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_work, args=(name, int(count), index, num_workers, float(seconds), barrier, theirs))
        child.start()
        pipes.append(ours)
        children.append(child)
    rates = [pipe.recv() for pipe in pipes]
    for child in children:
        child.join()
    # each worker made steps of its share for the same time; all models made one step each at the sum of the paces
    return {"seconds": [int(count) / sum(rates)]}


def _work(name: str, count: int, index: int, workers: int, seconds: float, barrier: Barrier, pipe: Connection) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if workers <= len(cores):
        os.sched_setaffinity(0, {cores[index]})  # as unified pins its workers
    torch.set_num_threads(1)
    share = count // workers + (index < count % workers)
    people = populate(name, share)
    way = training_loop(people) if share == 1 else training_stack(people)
    for _ in range(COMPARED_STEPS):
        way.step()
    barrier.wait()
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        way.step()
        steps += 1
    pipe.send(share * steps / (time.perf_counter() - began))


if __name__ == "__main__":
    main()
