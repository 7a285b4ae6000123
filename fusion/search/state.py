"""Where a search stands, and how that is read back from its history."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fusion.search.absgraph import Graph, capacities
from fusion.search.elites import keep_best, keep_newest
from fusion.search.filters import RuleFilter
from fusion.search.front import Front, Point
from fusion.search.policy import Known, Snapshot
from fusion.search.scores import clip_drop
from fusion.search.setting import Setting
from fusion.search.trial import Trial


@dataclass(slots=True, kw_only=True, eq=False)
class State:
    """What a search has done so far.

    Attributes:
        setting: What it stands on.
        front: The best point of each threshold.
        rules: The rule-based filter.
        round: Number of proposals taken.
        seconds: Spent in all, also before a resume.
        elites: Candidates to mutate.
        known: All candidates by the key of their graph, as they were last seen.
        last_drop: Of the candidate judged last.
        points: Every check of every candidate that was within some threshold, and the original.
        records: Of all candidates, as in the history.
        since_improved: Candidates since the front last changed.
    """

    setting: Setting
    front: Front
    rules: RuleFilter
    round: int = 0
    seconds: float = 0.0
    elites: tuple[Known, ...] = ()
    known: dict[str, Known] = field(default_factory=dict)
    last_drop: float = 1.0
    points: list[Point] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    since_improved: int = 0
    _elite_weights: dict[str, str] = field(default_factory=dict)

    @classmethod
    def begin(cls, setting: Setting) -> State:
        """Return the state before the first candidate: nothing but the original."""
        config, names = setting.config, [task.name for task in setting.tasks]
        first = Point(
            key=setting.original.key(),
            graph=setting.original,
            weights="",
            cost=setting.cost(setting.original),
            parameters=capacities(setting.original).total,
            drops=dict.fromkeys(names, 0.0),
            errors=dict.fromkeys(names, 0.0),
            epoch=0,
            number=0,
        )
        limits = {task.name: task.max_drop for task in setting.tasks}
        front = Front.of(first, config.thresholds, limits, config.margin)
        return cls(
            setting=setting,
            front=front,
            rules=RuleFilter(config.thresholds, unknown_fails=config.unknown_fails),
            points=[first],
        )

    @property
    def num_candidates(self) -> int:
        """How many candidates were judged, skipped ones included."""
        return len(self.records)

    def snapshot(self) -> Snapshot:
        """Return what a policy may see."""
        setting = self.setting
        return Snapshot(
            iteration=self.round,
            original=setting.original,
            original_cost=self.points[0].cost,
            elites=self.elites,
            known=self.known,
            last_drop=clip_drop(self.last_drop),
            thresholds=setting.config.thresholds,
            best_cost=self.front.costs(),
            predict=setting.cost,
            similarity=lambda host, guest: 1.0 - setting.dissimilarity.get((host, guest), 1.0),
            sharing=setting.config.sharing,
            barred=setting.config.barred,
        )

    def weights_of(self, key: str) -> str:
        """Return the name of the weights of an elite: those of its best check."""
        return self._elite_weights[key]

    def kept_weights(self) -> set[str]:
        """Return the names of the weights that are still of use."""
        best = {point.weights for point in self.front.best.values() if point.weights}
        return best | set(self._elite_weights.values())

    def add(self, record: Mapping[str, Any], points: list[Point], *, expected: float) -> None:
        """Take note of a candidate that has ended.

        Args:
            record: As it is written to the history.
            points: Its checks; none if it was skipped.
            expected: The drop at which it would have ended with its full training.
        """
        config = self.setting.config
        self.records.append(dict(record))
        self.since_improved = 0 if record["improved"] else self.since_improved + 1
        if not points:
            self._skip(record)
            return
        last = points[-1]
        met = [point for point in points if self.front.met(point)]
        self.points += met
        missed = set(config.thresholds).difference(*(self.front.met(point) for point in points))
        status = str(record["status"])
        best = min(met, key=lambda point: (point.drop, -point.epoch), default=last)
        known = Known(
            key=last.key,
            graph=last.graph,
            drop=best.drop,
            expected_drop=best.drop if met else expected,
            cost=last.cost,
            parameters=last.parameters,
            status=status,
            bases=self._bases(last.key) | {record["base"]},
        )
        self.known[last.key] = known
        self.last_drop = last.drop
        converged = last.epoch >= config.epochs
        self.rules.record(capacities(last.graph), missed=missed, converged=converged)
        if met:
            self.elites = (keep_newest if config.fifo_elites else keep_best)(self.elites, known)
            weights = self._elite_weights | ({best.key: best.weights} if known in self.elites else {})
            self._elite_weights = {elite.key: weights[elite.key] for elite in self.elites}

    def _skip(self, record: Mapping[str, Any]) -> None:
        """Remember a graph that was not trained, so that nobody proposes it again."""
        graph = Graph.from_json(self.setting.space, record["graph"])
        key = str(record["key"])
        self.known.setdefault(
            key,
            Known(
                key=key,
                graph=graph,
                drop=math.nan,
                expected_drop=math.nan,
                cost=record["cost"],
                parameters=record["parameters"],
                status="failed",
            ),
        )

    def _bases(self, key: str) -> frozenset[str | None]:
        earlier = self.known.get(key)
        return frozenset() if earlier is None or earlier.bases is None else earlier.bases


def record_of(trial: Trial) -> dict[str, Any]:
    """Return a candidate as it is written to the history."""
    return {
        "number": trial.number,
        "key": trial.key,
        "base": trial.proposal.base,
        "pairs": [[list(pair.host), list(pair.guest)] for pair in trial.proposal.pairs],
        "graph": trial.graph.to_json(),
        "cost": trial.cost,
        "parameters": trial.parameters,
        "status": trial.status,
        "why": trial.why,
        "epochs": trial.epochs,
        "checks": [point.to_json() for point in trial.points],
        "given_up": trial.given_up,
    }


def points_of(record: Mapping[str, Any], setting: Setting) -> list[Point]:
    """Return the checks of a candidate that was read from the history."""
    graph = Graph.from_json(setting.space, record["graph"])
    return [
        Point(
            key=record["key"],
            graph=graph,
            weights=check["weights"],
            cost=record["cost"],
            parameters=record["parameters"],
            drops={task: _number(value) for task, value in check["drops"].items()},
            errors={task: _number(value) for task, value in check["errors"].items()},
            epoch=check["epoch"],
            number=record["number"],
        )
        for check in record["checks"]
    ]


def _number(value: float | None) -> float:
    return math.nan if value is None else value
