"""From what a search told and handed out to its record: what it had found when, and what its finalists are worth."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.fusion_records import Contender, End, Gain, Judged, Search
from benchmarks.fusion_stage import Stage
from fusion.search.absgraph import Graph
from fusion.search.hashing import hash_tensors, tensors_of
from fusion.search.progress import CandidateDone, Event, Improved
from fusion.search.report import Entry, FusionReport
from fusion.timer import Timing


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """A search that has ended.

    Attributes:
        contender: How it searched.
        place: Its place in the order of time, from 0.
        load_before: Load average before it.
        whole_seconds: From taking the models apart to the report.
        report: What it handed out.
        events: What it told.
    """

    contender: Contender
    place: int
    load_before: float
    whole_seconds: float
    report: FusionReport
    events: tuple[Event, ...]


def shape_of(graph: Graph) -> str:
    """Return what tells the latency of a graph: its blocks and adapters, whatever their weights."""
    return json.dumps(graph.to_json())


def recorded(stage: Stage, found: Found, timings: Mapping[str, Timing], *, set_name: str, seed: int) -> Search:
    """Return the record of a search.

    Args:
        stage: What it searched on.
        found: What it told and handed out.
        timings: Of every finalist and of the original, by :func:`shape_of`, measured in turns.
        set_name: Of the task set.
        seed: Of the search.
    """
    report = found.report
    judged = [event for event in found.events if isinstance(event, CandidateDone)]
    gains = tuple(_gains(stage, report, found.events))
    known = {event.number: event.seconds for event in judged}
    return Search(
        set=set_name,
        seed=seed,
        contender=found.contender,
        place=found.place,
        load_before=found.load_before,
        seconds=report.seconds,
        whole_seconds=found.whole_seconds,
        full_epochs=int(report.settings["epochs"]),
        why=report.why,
        judged=tuple(Judged(seconds=event.seconds, epochs=event.epochs, status=event.status) for event in judged),
        gains=gains,
        ends=tuple(_ends(stage, report, gains, known, timings)),
    )


def _ends(
    stage: Stage, report: FusionReport, gains: tuple[Gain, ...], known: Mapping[int, float], timings: Mapping[str, Timing]
) -> Iterator[End]:
    counted: dict[str, tuple[dict[str, float], dict[str, float]]] = {}
    for _, entry in sorted(report.best.items()):
        weights = hash_tensors(tensors_of(entry.module).items())
        if weights not in counted:
            counted[weights] = stage.held_out(entry.module)
        yield _end(stage, entry, counted[weights], timings, seconds=_had(entry, gains, known))


def _gains(stage: Stage, report: FusionReport, events: tuple[Event, ...]) -> Iterator[Gain]:
    for event in events:
        if isinstance(event, Improved):
            record = _record_of(event, report)
            yield Gain(
                threshold=event.threshold,
                seconds=event.seconds,
                number=record["number"],
                drop=event.drop,
                predicted=event.speedup,
                yardstick=stage.yardstick(record["graph"]),
            )


def _record_of(event: Improved, report: FusionReport) -> Mapping[str, Any]:
    """Return the candidate that an event speaks of: the one of its cost and of its drop at one of its checks."""
    cost = report.original["cost"]
    for record in report.candidates:
        drops = [max(check["drops"].values()) for check in record["checks"]]
        if cost / record["cost"] == event.speedup and event.drop in drops:
            return record
    raise AssertionError(f"no candidate of the report is {event}")


def _had(entry: Entry, gains: tuple[Gain, ...], known: Mapping[int, float]) -> float:
    """Return when a search had the model that it hands out for a threshold."""
    times = [gain.seconds for gain in gains if gain.threshold == entry.threshold and gain.number == entry.number]
    return min(times, default=known.get(entry.number, 0.0))


def _end(
    stage: Stage,
    entry: Entry,
    counted: tuple[dict[str, float], dict[str, float]],
    timings: Mapping[str, Timing],
    *,
    seconds: float,
) -> End:
    losses, accuracies = counted
    timing, original = timings[shape_of(entry.graph)], timings[shape_of(stage.original)]
    return End(
        threshold=entry.threshold,
        number=entry.number,
        seconds=seconds,
        rejected=entry.rejected,
        drops={task.task: task.drop for task in entry.tasks},
        held_out_drops=losses,
        accuracy_drops=accuracies,
        yardstick=stage.yardstick(entry.graph.to_json()),
        own_speedup=entry.speedup,
        speedup=original.quiet_seconds / timing.quiet_seconds,
        median_speedup=original.median_seconds / timing.median_seconds,
        latency_ms=1e3 * timing.quiet_seconds,
        parameters=entry.parameters,
        flops=entry.flops,
    )
