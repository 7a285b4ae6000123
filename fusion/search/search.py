"""The search: which parts of several models to share, so that they are fast together and as good as alone.

References:
    GMorph: Accelerating Multi-DNN Inference via Model Fusion, EuroSys'24, sections 3 to 5. What differs stands in
    ``docs/fusion.md``.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from fusion.graph.errors import FusionError
from fusion.search.absgraph import capacities
from fusion.search.baselines import FixedPolicy, TreePolicy, all_shared
from fusion.search.cohort import train_cohort
from fusion.search.config import Config
from fusion.search.data import FusionData, check_data
from fusion.search.exhaustive import ExhaustivePolicy
from fusion.search.finalists import conclude
from fusion.search.front import Point
from fusion.search.guided import GuidedPolicy
from fusion.search.hashing import hash_model
from fusion.search.history import History, check_writable
from fusion.search.judge import Judge
from fusion.search.mutation import pairs
from fusion.search.policy import AnnealingPolicy, Policy, Proposal, RandomPolicy
from fusion.search.progress import CandidateDone, Event, Finished, Improved, Started
from fusion.search.report import FusionReport
from fusion.search.setting import Setting, parsed, prepare, teacher_scores
from fusion.search.state import State, points_of, record_of
from fusion.search.tasks import Task
from fusion.search.training import CoTrain, train_one_by_one
from fusion.search.trial import Base, Batches, make_trial

MAX_UNMADE = 8
Progress = Callable[[Event], None]

_SHARES_MORE = "shares more than a candidate that failed"


def run(
    tasks: Sequence[Task],
    data: FusionData,
    config: Config,
    *,
    cotrain: CoTrain = train_one_by_one,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
) -> FusionReport:
    """Search for the fastest module that answers all tasks within each allowed drop.

    Args:
        tasks: At least two trained models on the same inputs; they are not changed.
        data: Representative inputs; labels where there are any.
        config: How to search.
        cotrain: Trains candidates side by side.
        progress: Told what happens.
        device: Where candidates are trained and measured.

    Returns:
        What was found, best of all the module for each threshold: at worst the models side by side.

    Raises:
        CaptureError: If a model cannot be parsed.
        FusionError: If tasks, data, settings or an earlier history do not fit together.
    """
    tell = progress or (lambda event: None)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) if config.out is None else config.out / "search"
        check_writable(folder)
        check_data(data, [task.name for task in tasks])
        sequences = parsed(tasks, data.train, torch.device(device))
        identity = {
            "models": {sequence.name: hash_model(sequence) for sequence in sequences},
            "data": data.content,
            "settings": config.identity() | {f"task {task.name}": _judged_by(task) for task in tasks},
        }
        records = folder / "candidates.jsonl"
        is_begun = records.exists() and records.stat().st_size > 0  # what ended before its first record binds nobody
        history = stack.enter_context(History(folder, identity, fresh=not is_begun and not config.resume))
        if history.num_records and not config.resume:
            raise FusionError(f"{folder} holds an earlier search; go on with it (resume), or use a new path")
        began = time.perf_counter()
        setting = prepare(tasks, data, config, sequences, history)
        search = _Search(setting, history, cotrain, tell, began)
        why = search.run()
        report = conclude(setting, search.state, history, why=why, seconds=search.elapsed())
        tell(Finished(why=why, num_candidates=search.state.num_candidates, seconds=search.elapsed()))
        return report


class _Search:
    """The loop over proposals."""

    def __init__(self, setting: Setting, history: History, cotrain: CoTrain, tell: Progress, began: float) -> None:
        self.setting = setting
        self.state = State.begin(setting)
        self._history = history
        self._cotrain = cotrain
        self._tell = tell
        self._began = began
        self._improved: dict[int, int] = {}
        self._judge = Judge(setting, self.state.front, history, self._note_improved)
        self._policy = _policy_of(setting)
        self._batches = Batches(setting)
        self._models = Base(setting, setting.original, None)
        self._replay()

    def elapsed(self) -> float:
        """Return the seconds spent, also before a resume."""
        return self.state.seconds + time.perf_counter() - self._began

    def run(self) -> str:
        """Go on until something ends the search, and return what."""
        self._tell_started()
        while True:
            why = self._end()
            if why is not None:
                return why
            proposals = self._proposals()
            if not proposals:
                return "every graph of the space has been looked at"
            self._take(proposals)

    def _end(self) -> str | None:
        config, state = self.setting.config, self.state
        _check_some_can_be_made(state.records)
        if state.num_candidates >= config.candidates:
            return f"{state.num_candidates} candidates were judged"
        if config.stall is not None and state.since_improved >= config.stall:
            return f"{state.since_improved} candidates brought nothing better"
        return "the time was up" if self._is_over() else None

    def _is_over(self) -> bool:
        budget = self.setting.config.budget_seconds
        return budget is not None and self.elapsed() >= budget

    def _proposals(self) -> list[Proposal]:
        config = self.setting.config
        width = max(config.screen, config.cohort) if config.rungs else config.cohort
        count = int(min(width, config.candidates - self.state.num_candidates))
        rng = random.Random(f"{config.seed} proposals {self.state.round}")
        return self._policy.propose(self.state.snapshot(), rng, count)

    def _take(self, proposals: list[Proposal]) -> None:
        """Train a round of candidates and write down how each ended; half a round is as none."""
        state, records = self.state, []
        first, bases = state.num_candidates + 1, self._bases(proposals)
        left_out, trials = [], []
        for number, proposal in enumerate(proposals, start=first):
            is_given_up = self._is_given_up(proposal)
            if is_given_up and not self.setting.config.audit:
                left_out.append(_untrained_record(number, proposal, self.setting, "skipped", _SHARES_MORE))
                continue
            try:
                trial = make_trial(self.setting, proposal, bases[proposal.base], number=number, batches=self._batches)
            except Exception as error:  # noqa: BLE001 - one graph that cannot be started must not end the search
                why = f"{type(error).__name__}: {error}"
                left_out.append(_untrained_record(number, proposal, self.setting, "failed", why))
                continue
            if is_given_up:
                trial.give_up(_SHARES_MORE)
            if self.setting.config.rungs:
                self._judge.look(trial)  # right after its start: what needs no training is found at once
            trials.append(trial)
        train_cohort(self.setting, trials, self._judge, self._cotrain, is_over=self._is_over)
        for trial in trials:
            if trial.status != "accepted" and any(state.front.met(point) for point in trial.points):
                trial.end("accepted", trial.why)  # what ended it came after it was within a threshold
        records = [*left_out, *(record_of(trial) | {"improved": self._improved.get(trial.number, 0)} for trial in trials)]
        state.round += 1
        self._history.append({"round": state.round, "seconds": self.elapsed(), "candidates": records})
        points = {trial.number: trial.points for trial in trials}
        for record in sorted(records, key=lambda entry: entry["number"]):
            self._add(record, points.get(record["number"], []))
            self._tell_done(record)
        self._history.drop_weights_except(state.kept_weights())

    def _bases(self, proposals: list[Proposal]) -> dict[str | None, Base]:
        """Return what the proposals were mutated from; the models themselves stay at hand."""
        bases: dict[str | None, Base] = {None: self._models}
        for key in {proposal.base for proposal in proposals} - {None}:
            graph = next(elite.graph for elite in self.state.elites if elite.key == key)
            bases[key] = Base(self.setting, graph, self._history.weights(self.state.weights_of(str(key))))
        return bases

    def _add(self, record: dict[str, Any], points: list[Point]) -> None:
        self.state.add(record, points, expected=self._judge.expected_drop(points[-1]) if points else math.nan)

    def _is_given_up(self, proposal: Proposal) -> bool:
        config = self.setting.config
        given_up = self.state.rules.given_up(capacities(proposal.graph)) if config.rule_filter else ()
        return len(given_up) == len(set(config.thresholds))

    def _note_improved(self, point: Point, thresholds: tuple[float, ...]) -> None:
        self._improved[point.number] = self._improved.get(point.number, 0) + len(thresholds)
        original = self.state.points[0].cost
        for threshold in thresholds:
            self._tell(Improved(threshold=threshold, speedup=original / point.cost, drop=point.drop, seconds=self.elapsed()))

    def _replay(self) -> None:
        """Bring the state to where the history ends."""
        for line in self._history.records():
            records = sorted(line["candidates"], key=lambda entry: entry["number"])
            points = {record["number"]: points_of(record, self.setting) for record in records}
            # in the order in which they were seen, and all of a round before the first is judged by it, as it was then
            for point in sorted((point for some in points.values() for point in some), key=lambda p: (p.epoch, p.number)):
                self.state.front.add(point)
            for record in records:
                self._judge.learn(points[record["number"]])
            for record in records:
                self._add(record, points[record["number"]])
            self.state.round = line["round"]
            self.state.seconds = line["seconds"]
        self._history.drop_weights_except(self.state.kept_weights())

    def _tell_started(self) -> None:
        setting, config = self.setting, self.setting.config
        self._tell(
            Started(
                tasks=setting.space.tasks,
                num_blocks=tuple(len(sequence.blocks) for sequence in setting.sequences),
                num_pairs=len(pairs(setting.original, sharing=config.sharing, barred=config.barred)),
                original_cost=self.state.points[0].cost,
                scores=teacher_scores(setting, setting.data.validation),
                notes=setting.notes,
            )
        )

    def _tell_done(self, record: dict[str, object]) -> None:
        original = self.state.points[0].cost
        known = self.state.known.get(str(record["key"]))
        self._tell(
            CandidateDone(
                number=int(str(record["number"])),
                status=str(record["status"]),
                speedup=original / float(str(record["cost"])),
                drop=float("nan") if known is None or record["status"] == "skipped" else known.drop,
                epochs=float(str(record["epochs"])),
                seconds=self.elapsed(),
                best={threshold: original / point.cost for threshold, point in self.state.front.best.items()},
            )
        )


def _check_some_can_be_made(records: list[dict[str, Any]]) -> None:
    """Refuse to go on where no candidate could be made: one that cannot is bad luck, all of them are not."""
    if len(records) >= MAX_UNMADE and all(record["status"] == "failed" and not record["checks"] for record in records):
        raise FusionError(
            f"none of the first {len(records)} candidates could be made; the first: {records[0]['why']}; "
            "this is a fault of ours or of a model's blocks, please report it"
        )


def _policy_of(setting: Setting) -> Policy:
    match setting.config.policy:
        case "guided":
            return GuidedPolicy(setting.dissimilarity)
        case "annealing":
            return AnnealingPolicy(num_pairs=setting.config.num_pairs)
        case "random":
            return RandomPolicy(num_pairs=setting.config.num_pairs)
        case "exhaustive":
            return ExhaustivePolicy()
        case "tree":
            return TreePolicy(setting.space)
        case "all-shared":
            return FixedPolicy([all_shared(setting.space)])
        case _:
            return FixedPolicy([])


def _judged_by(task: Task) -> dict[str, object]:
    """Return what decides how a task is judged and trained, apart from what a user's score does."""
    values = {name: getattr(task, name) for name in ("output", "max_drop", "lr", "dense")}
    return values | {"has_score": task.score is not None}


def _untrained_record(number: int, proposal: Proposal, setting: Setting, status: str, why: str) -> dict[str, object]:
    return {
        "number": number,
        "key": proposal.graph.key(),
        "base": proposal.base,
        "pairs": [[list(pair.host), list(pair.guest)] for pair in proposal.pairs],
        "graph": proposal.graph.to_json(),
        "cost": setting.cost(proposal.graph),
        "parameters": capacities(proposal.graph).total,
        "status": status,
        "why": why,
        "epochs": 0,
        "checks": [],
        "given_up": None,
        "improved": 0,
    }
