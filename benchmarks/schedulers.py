"""What schedulers cost and what they keep of their promises, in the real engine; writes FILE.json and FILE.png, prints tables.

``python -m benchmarks.schedulers [--quick] --out FILE.json``. Four parts: the time of a decision over a full queue; the same
eight small jobs under every policy on one slot, beside the plain loop in one process and N processes, in one run; how soon a
resident unit makes room for another; and the slot time of users under a fair share.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import cotraining
from benchmarks.machine import describe_machine, git_commit, versions
from benchmarks.modes import PROCESSES_1, SEQUENTIAL_1, Kind, Mode
from benchmarks.records import RunRecord, record
from benchmarks.scheduler_decisions import NUM_RESIDENT, WINDOW, DecisionCost, measure_decisions
from benchmarks.scheduler_engine import Shares, Switches, measure_shares, measure_switches
from benchmarks.schedulers_plot import draw
from benchmarks.schedulers_tables import print_found, targets_of
from benchmarks.tables import print_tables

PARTS = ("decisions", "makespan", "switch", "shares")
#: Every built-in policy that orders; of wrappers one spelling.
POLICIES = (
    "fcfs", "sjf", "priority", "round-robin", "srtf", "hrrn", "las", "2dlas", "stride", "drr", "edf", "default",
    "fair(srtf)",
)  # fmt: skip
#: Whose decisions alone are timed: the jobs have no deadlines.
WITHOUT_JOBS = frozenset({"edf"})
EQUAL = {"ann": 1.0, "bob": 1.0, "eve": 1.0}
WEIGHTED = {"ann": 1.0, "bob": 2.0, "eve": 4.0}
#: Turns over which users' slot time is compared: about fifty, and such that shares come out even.
EQUAL_TURNS, WEIGHTED_TURNS = 51, 49
FAIR = "fair(srtf)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured.

    Attributes:
        mix: Scale of the jobs, as in the co-training benchmark.
        repeats: Of the jobs under every policy.
        queued: Jobs that wait while decisions are timed.
        decisions: Of each policy.
        switches: Times that a unit makes room.
    """

    mix: str
    repeats: int
    queued: int
    decisions: int
    switches: int


SCALES = {
    "full": Scale(mix="full", repeats=3, queued=10_000, decisions=1000, switches=100),
    "quick": Scale(mix="quick", repeats=1, queued=10_000, decisions=300, switches=30),
    "tiny": Scale(mix="tiny", repeats=1, queued=300, decisions=5, switches=3),
}


@dataclass(slots=True)
class Found:
    """What was measured; a part that was not run has nothing."""

    decisions: list[DecisionCost] = field(default_factory=list)
    runs: list[RunRecord] = field(default_factory=list)
    switches: Switches | None = None
    shares: list[Shares] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is to be measured; ``out`` is the JSON file, the plot goes beside it."""

    scale: str
    parts: tuple[str, ...]
    policies: tuple[str, ...]
    repeats: int
    out: Path


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark described on the command line."""
    run(read_settings(argv), Console(width=None if sys.stdout.isatty() else 160))


def read_settings(argv: Sequence[str] | None) -> Settings:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.json")
    parser.add_argument("--quick", action="store_true", help="a fifth of the epochs, once")
    parser.add_argument("--scale", choices=tuple(SCALES), help="instead of --quick")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be given again")
    parser.add_argument("--policy", action="append", metavar="NAME", help="only this policy; may be given again")
    parser.add_argument("--repeats", type=int, help="of the jobs under every policy")
    options = parser.parse_args(argv)
    scale = options.scale or ("quick" if options.quick else "full")
    return Settings(
        scale=scale,
        parts=tuple(part for part in PARTS if not options.part or part in options.part),
        policies=tuple(options.policy or POLICIES),
        repeats=options.repeats or SCALES[scale].repeats,
        out=options.out,
    )


def run(settings: Settings, console: Console) -> None:
    """Measure, print the tables, write the files."""
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    scale, found = SCALES[settings.scale], Found()
    for part in settings.parts:
        console.print(f"measuring: {part} …")
        _MEASURE[part](settings, scale, found, console)
    reached = targets_of(found.decisions, found.runs, found.switches, found.shares)
    print_found(found.decisions, found.runs, found.switches, found.shares, console)
    print_tables([], reached, console, scale=settings.scale)
    draw(found.decisions, found.runs, settings.out.with_suffix(".png"))
    settings.out.write_text(json.dumps(_report(settings, found, reached), indent=1) + "\n")
    console.print(f"written: {settings.out} and the plot beside it")


def command_line(settings: Settings) -> str:
    """Return the command that repeats the run."""
    parts = ["python -m benchmarks.schedulers", f"--scale {settings.scale}", f"--repeats {settings.repeats}"]
    parts += [f"--part {part}" for part in settings.parts if settings.parts != PARTS]
    parts += [f"--policy '{policy}'" for policy in settings.policies if settings.policies != POLICIES]
    return " ".join([*parts, f"--out {settings.out.name}"])


def modes_of(policies: Sequence[str]) -> tuple[Mode, ...]:
    """Return the ways in which the jobs are trained: the baselines, then one slot of one thread under each policy."""
    ours = (
        Mode(name=f"unified, {name}", kind=Kind.UNIFIED, threads=1, slots="1", scheduler=name)
        for name in policies
        if name not in WITHOUT_JOBS
    )
    return (SEQUENTIAL_1, PROCESSES_1, *ours)


def _decisions(settings: Settings, scale: Scale, found: Found, console: Console) -> None:
    found.decisions = measure_decisions(settings.policies, scale.queued, scale.decisions)


def _makespan(settings: Settings, scale: Scale, found: Found, console: Console) -> None:
    modes = modes_of(settings.policies)
    prepared = cotraining.Settings(
        scale=scale.mix, repeats=settings.repeats, mixes=("small",), modes=modes, data=None, out=settings.out
    )
    with tempfile.TemporaryDirectory(prefix="unified-benchmark-") as folder:
        work = Path(folder)
        jobs = cotraining.prepare(prepared, work)["small"]
        folders = [work / "small" / "jobs" / job["name"] for job in jobs]
        makespans: dict[str, float] = {}
        for repeat in range(settings.repeats):
            shift = repeat % len(modes)
            order = modes[shift:] + modes[:shift]  # no mode is always the first or the last
            runs = cotraining.run_mix(order, folders, work / "runs", console, makespans)
            equal = cotraining.compare(runs, folders, work / "runs")
            shutil.rmtree(work / "runs")
            num_steps = sum(job["steps"] for job in jobs)
            found.runs += [record("small", repeat, each, num_steps=num_steps, equal=equal) for each in runs]


def _switch(settings: Settings, scale: Scale, found: Found, console: Console) -> None:
    found.switches = measure_switches(scale.switches)


def _shares(settings: Settings, scale: Scale, found: Found, console: Console) -> None:
    found.shares = [measure_shares(FAIR, EQUAL, EQUAL_TURNS), measure_shares(FAIR, WEIGHTED, WEIGHTED_TURNS)]


_MEASURE: Mapping[str, Callable[[Settings, Scale, Found, Console], None]] = {
    "decisions": _decisions,
    "makespan": _makespan,
    "switch": _switch,
    "shares": _shares,
}


def _report(settings: Settings, found: Found, reached: Sequence[Any]) -> dict[str, Any]:
    return {
        "command": command_line(settings),
        "git_commit": git_commit(),
        "machine": asdict(describe_machine()),
        "versions": versions(),
        "settings": {
            "scale": settings.scale,
            "repeats": settings.repeats,
            "resident": NUM_RESIDENT,
            "window": WINDOW,
            "queued": SCALES[settings.scale].queued,
        },
        "decisions": [asdict(each) for each in found.decisions],
        "runs": [asdict(each) | {"is_equal": each.is_equal} for each in found.runs],
        "switches": None if found.switches is None else asdict(found.switches),
        "shares": [asdict(each) | {"deviation": each.deviation} for each in found.shares],
        "targets": [asdict(target) | {"is_reached": target.is_reached} for target in reached],
    }


if __name__ == "__main__":
    main()
