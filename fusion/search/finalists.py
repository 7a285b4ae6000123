"""The end of a search: finalists are measured beside the original, and the held-out part is opened, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from fusion.graph.tree import FusedTree
from fusion.search.absgraph import capacities, flops
from fusion.search.build import build
from fusion.search.data import Part
from fusion.search.front import Point, pareto
from fusion.search.history import History
from fusion.search.report import Entry, FusionReport, TaskEnd
from fusion.search.scores import Scores, evaluate
from fusion.search.setting import Setting
from fusion.search.state import State
from fusion.timer import Timing, time_interleaved

MAX_FINALISTS = 6  #: per threshold
MIN_RUNS = 40  #: of a finalist; with a handful of them a busy machine makes one of two equal models twice as fast


def conclude(setting: Setting, state: State, history: History, *, why: str, seconds: float) -> FusionReport:
    """Choose the model of each threshold and say everything about the search.

    Of the candidates within a threshold on the validation part, the cheapest that is also within it on the held-out part is
    the model for it; those that are not are named in the report. Nobody is told to be within a drop that it exceeds there.
    """
    ends = _Ends(setting, history)
    best = {threshold: ends.entry(threshold, _finalists(state, threshold), state) for threshold in setting.config.thresholds}
    first = state.points[0]
    return FusionReport(
        best=best,
        front=tuple(_point_to_json(point, first) for point in pareto(state.points)),
        candidates=tuple(state.records),
        original={"cost": first.cost, "flops": flops(first.graph), "parameters": first.parameters},
        audit=_audit(setting, state),
        settings=setting.config.identity(),
        notes=setting.notes,
        why=why,
        seconds=seconds,
        latency_batch=setting.config.latency_batch,
    )


def _finalists(state: State, threshold: float) -> list[Point]:
    """Return the points within a threshold whose weights are there, cheapest first; the last one is the original."""
    kept, limits, margin = state.kept_weights(), state.front.limits[threshold], state.front.margin
    within = [point for point in state.points if point.weights in kept and point.is_within(limits, margin)]
    newest = {(point.key, point.weights): point for point in within}
    ranked = sorted(newest.values(), key=lambda point: (point.cost, point.drop))
    return [*ranked[:MAX_FINALISTS], state.points[0]]


class _Ends:
    """Scores and times finalists, each once."""

    def __init__(self, setting: Setting, history: History) -> None:
        self._setting = setting
        self._history = history
        self._test = None if setting.data.test is None else setting.data.test.open()
        self._scores: dict[str, Scores] = {}
        self._timings: dict[str, tuple[Timing, Timing]] = {}
        self._original = self._tree(None)

    def entry(self, threshold: float, points: list[Point], state: State) -> Entry:
        rejected: list[int] = []
        limits = state.front.limits[threshold]
        for point in points:
            tree = self._tree(point)
            try:
                if not self._is_within(point, tree, limits, state.front.margin):
                    continue
                test = None if self._test is None else self._score(point, tree, self._test)
            except Exception:
                if not point.weights:
                    raise
                rejected.append(point.number)  # nobody can say that it is within
                continue
            if test is None or not point.weights or all(test.drops[task] <= limit for task, limit in limits.items()):
                return self._entry(threshold, point, tree, test, tuple(dict.fromkeys(rejected)))
            rejected.append(point.number)
        raise AssertionError("the original is always within")

    def _is_within(self, point: Point, tree: FusedTree, limits: Mapping[str, float], margin: float) -> bool:
        """Whether a point keeps its limits on the whole validation part; the search may have had a glance only."""
        if not point.weights:
            return True
        scores = self._score(point, tree, self._setting.data.validation)
        return replace(point, drops=scores.drops, errors=scores.errors).is_within(limits, margin)

    def _entry(self, threshold: float, point: Point, tree: FusedTree, test: Scores | None, rejected: tuple[int, ...]) -> Entry:
        if point.weights not in self._timings:  # one model has one latency, however many thresholds it is the best of
            self._timings[point.weights] = self._times(tree)
        timing, original = self._timings[point.weights]
        validation = self._score(point, tree, self._setting.data.validation)
        return Entry(
            threshold=threshold,
            module=tree,
            graph=point.graph,
            number=point.number,
            tasks=tuple(_task_end(name, validation, test) for name in self._setting.space.tasks),
            cost=point.cost,
            speedup=original.median_seconds / timing.median_seconds,
            timing=timing,
            original_timing=original,
            flops=flops(point.graph),
            parameters=capacities(point.graph).total,
            rejected=rejected,
            is_within=None if test is None else True,
        )

    def _tree(self, point: Point | None) -> FusedTree:
        setting = self._setting
        graph = setting.original if point is None else point.graph
        weights = self._history.weights(point.weights) if point is not None and point.weights else None
        return build(graph, setting.sequences, seed=setting.config.seed, weights=weights).to(setting.device).eval()

    def _score(self, point: Point, tree: FusedTree, part: Part) -> Scores:
        key = f"{point.weights} {part.content}"
        if key not in self._scores:
            setting = self._setting
            self._scores[key] = evaluate(tree, part, setting.teachers, setting.tasks, label_free=setting.config.label_free)
        return self._scores[key]

    def _times(self, tree: FusedTree) -> tuple[Timing, Timing]:
        """Return the latency of a tree and of the original, measured in turns."""
        setting = self._setting
        part = setting.data.train
        index = torch.arange(setting.config.latency_batch) % len(part)
        inputs = tuple(tensor[index].to(setting.device) for tensor in setting.teachers.inputs(part))
        mine, its = time_interleaved(
            [lambda: tree.run(inputs), lambda: self._original.run(inputs)],
            max_seconds=setting.config.measure_seconds / 2,
            min_runs=MIN_RUNS,
            device=setting.device,
        )
        return mine, its


def _task_end(name: str, validation: Scores, test: Scores | None) -> TaskEnd:
    now = next(score for score in validation.per_task if score.task == name)
    held = None if test is None else next(score for score in test.per_task if score.task == name)
    return TaskEnd(
        task=name,
        kind=str(now.kind),
        before=now.teacher_score,
        after=now.score,
        error=now.standard_error,
        test_before=None if held is None else held.teacher_score,
        test_after=None if held is None else held.score,
        test_error=None if held is None else held.standard_error,
    )


def _point_to_json(point: Point, first: Point) -> dict[str, Any]:
    return {
        "candidate": point.number,
        "cost": point.cost,
        "speedup": first.cost / point.cost,
        "drop": point.drop,
        "drops": dict(point.drops),
        "parameters": point.parameters,
        "epoch": point.epoch,
    }


def _audit(setting: Setting, state: State) -> dict[str, Any] | None:
    """Return how often a candidate that would have been ended early, or left out, was within a threshold after all."""
    if not setting.config.audit:
        return None
    ended = [record for record in state.records if record["given_up"] is not None]
    met = [record for record in state.records if record["status"] == "accepted"]
    wrong = [record["number"] for record in ended if record["status"] == "accepted"]
    shares = sorted(record["given_up"][0] / setting.config.epochs for record in ended)
    reasons: dict[str, dict[str, int]] = {}
    for record in ended:
        counts = reasons.setdefault(record["given_up"][1], {"ended": 0, "wrong": 0})
        counts["ended"] += 1
        counts["wrong"] += record["status"] == "accepted"
    return {
        "ended_early": len(ended),
        "would_have_met": len(met),
        "wrongly_ended": wrong,
        "wrongly_ended_share": len(wrong) / len(met) if met else 0.0,
        "median_end_share": shares[len(shares) // 2] if shares else None,
        "reasons": reasons,
    }
