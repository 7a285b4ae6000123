"""A whole merge: networks are read, regrouped, merged, trained and pruned, compared with the baselines, and reported."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from fusion.merging.config import Threshold
from fusion.merging.errors import MergeError
from fusion.merging.gains import gains
from fusion.merging.merge import read_models
from fusion.merging.merged import MergedNetwork
from fusion.merging.neurons import names_of
from fusion.merging.plain import pruned_module
from fusion.merging.plan import Regrouping
from fusion.merging.planned import reconnect_plan
from fusion.merging.progress import AlphaTried, Event, Finished, Progress, RoundEnded, StageBegan, Started
from fusion.merging.pruning import RoundDone, floors_for, prune_alternating
from fusion.merging.reconnect import alone
from fusion.merging.records import (
    ALONE,
    ORIGINAL,
    OURS,
    ZIPPED,
    AlphaRecord,
    CurveRecord,
    MergeReport,
    RoundRecord,
    SchemeRecord,
    plain,
)
from fusion.merging.regroup import Traces, trace_networks
from fusion.merging.report import (
    Scheme,
    combinations_of,
    environment,
    record_curve,
    record_layers,
    record_schemes,
)
from fusion.merging.samples import MergeData, check_samples
from fusion.merging.settings import MergeSettings
from fusion.merging.training import Trainer
from fusion.merging.union import Union
from fusion.merging.zipping import zip_networks

MERGE_STEPS = 5  #: times the steps after a removal: training after the merge, for cut edges cost accuracy
LEAST_ALLOWED = 5  #: validation samples that a task may lose, below which luck decides
WHOLE_CURVE = 256  #: neurons of a layer up to which the report's curves go to their end


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergeOutcome:
    """What came out of a merge.

    Attributes:
        network: In evaluation mode.
        plan: The groups before pruning.
        report: What it cost and gained.
        alone: With baselines, each model pruned alone (B1): a copy of the module given, its layers narrower, or a plain module
            where that cannot be. Without, empty.
    """

    network: MergedNetwork
    plan: Regrouping
    report: MergeReport
    alone: Mapping[str, nn.Module] = field(default_factory=dict)


def run(
    models: Mapping[str, nn.Module], data: MergeData, settings: MergeSettings, *, progress: Progress | None = None
) -> MergeOutcome:
    """Merge networks as the settings say.

    Args:
        models: By task; each takes one tensor and gives one. They are not changed.
        data: With labels of all tasks; validation data decide, test data are for the report alone.
        settings: What to do.
        progress: Told what happens.

    Raises:
        MergeError: Everything that is wrong with networks and samples.
    """
    if data.test is not None:
        check_samples(data.test, models, "test samples")
    return _Run(models, read_models(models, data, private=settings.private), data, settings, progress).outcome()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Trial:
    """The network of one alpha."""

    alpha: float
    plan: Regrouping
    scheme: Scheme
    record: AlphaRecord


class _Run:
    def __init__(
        self,
        models: Mapping[str, nn.Module],
        union: Union,
        data: MergeData,
        settings: MergeSettings,
        progress: Progress | None,
    ) -> None:
        self.models, self.union, self.data, self.settings = models, union, data, settings
        self._progress = progress
        self._begin = time.perf_counter()
        self._stage = 0
        self.original = Scheme(name=ORIGINAL, networks=self._singles())
        found = self.original.scores(data.validation)
        self.floors = floors_for(found, settings.max_drop)
        self.traces: Traces = trace_networks(union, data, settings.regroup_config)
        self._tell(
            Started(
                tasks=union.tasks,
                scores=found,
                floors=self.floors,
                flops=self.original.flops(union.tasks),
                layers=tuple(union.spaces[space].name for space in self.traces.searches),
                notes=union.notes,
            )
        )

    def outcome(self) -> MergeOutcome:
        alphas = self.settings.alphas if self.settings.alpha is None else (self.settings.alpha,)
        trials = [self._trial(alpha) for alpha in alphas]
        # of those that are not good enough the one that shares least, which has lost least by merging
        best = min(trials, key=lambda trial: (not trial.record.is_feasible, trial.record.cost))
        baselines = self._baselines()
        schemes = [self.original, *baselines, best.scheme]
        self._began("measuring")
        report = self._report(schemes, best, trials)
        self._tell(
            Finished(alpha=best.alpha, is_feasible=report.schemes[OURS].is_feasible, seconds=report.seconds),
        )
        alone_too = {network.tasks[0]: self._owned(network) for network in (baselines[0].networks if baselines else ())}
        return MergeOutcome(network=best.scheme.networks[0], plan=best.plan, report=report, alone=alone_too)

    def _owned(self, network: MergedNetwork) -> nn.Module:
        """Return a network of one task as its owner's module, or as a plain one where that cannot be pruned."""
        (task,) = network.tasks
        try:
            return pruned_module(self.models[task], self.union.networks[task], network)
        except MergeError:
            return network.specialize([task], single=True).eval()

    def _trial(self, alpha: float) -> _Trial:
        self._began(f"merging and pruning with alpha {alpha:g}" if self.settings.prune else f"merging with alpha {alpha:g}")
        plan = self.traces.regroup(alpha)
        steps, train = self.settings.steps, self.settings.train_config
        if self.settings.pair:
            merged = zip_networks(self.union, self.data, retrain_steps=steps, train=train, plan=plan)
        else:
            merged = reconnect_plan(self.union, plan)
        Trainer(merged, self.data.train, train).train(MERGE_STEPS * steps)
        self._check_finite(merged)
        scheme = self._pruned(Scheme(name=OURS, networks=(merged,)))
        self._check_finite(scheme.networks[0])
        found = scheme.scores(self.data.validation)
        flops = {names: scheme.flops(names) for names in combinations_of(self.union.tasks)}
        record = AlphaRecord(
            alpha=alpha,
            flops=flops,
            scores=found,
            cost=sum(flops.values()) / len(flops),
            is_feasible=all(found[task] >= floor for task, floor in self.floors.items()),
        )
        self._tell(
            AlphaTried(
                alpha=alpha, flops=flops, scores=found, cost=record.cost, is_feasible=record.is_feasible, seconds=self._seconds
            )
        )
        return _Trial(alpha=alpha, plan=plan, scheme=scheme, record=record)

    def _check_finite(self, merged: MergedNetwork) -> None:
        if not all(bool(torch.isfinite(value).all()) for value in merged.state_dict().values()):
            raise MergeError(f"training diverged: weights are not finite; give a learning rate below {self.settings.lr:g}")

    def _baselines(self) -> list[Scheme]:
        if not self.settings.baselines:
            return []
        self._began(f"baseline {ALONE}: each network pruned alone")
        alone_too = self._pruned(Scheme(name=ALONE, networks=self._singles()))
        self._began(f"baseline {ZIPPED}: networks zipped, then pruned")
        steps = self.settings.steps
        zipped = zip_networks(self.union, self.data, retrain_steps=steps, train=self.settings.train_config)
        return [alone_too, self._pruned(Scheme(name=ZIPPED, networks=(zipped,)))]

    def _pruned(self, scheme: Scheme) -> Scheme:
        """Prune the networks of a scheme, all by the same rules."""
        if self.settings.prune is None:
            return scheme
        rounds: list[RoundRecord] = []
        networks = []
        for network in scheme.networks:
            floors = {task: self.floors[task] for task in network.tasks}
            tell = self._teller(scheme.name, network.tasks)
            pruned = prune_alternating(network, self.data, floors, self.settings.prune_config, progress=tell)
            networks.append(pruned.network)
            rounds += [_record(network.tasks, done) for done in pruned.rounds]
        return Scheme(name=scheme.name, networks=tuple(networks), rounds=tuple(rounds))

    def _report(self, schemes: list[Scheme], best: _Trial, trials: list[_Trial]) -> MergeReport:
        data, settings = self.data, self.settings
        found = record_schemes(
            schemes,
            self.union.tasks,
            validation=data.validation,
            test=data.test,
            floors=self.floors,
            latency=data.validation.inputs[: settings.latency_batch] if settings.latency_batch else None,
        )
        merged = best.scheme.networks[0]
        ours = found[OURS].flops
        return MergeReport(
            tasks=self.union.tasks,
            schemes=found,
            gains={name: gains(ours, scheme.flops) for name, scheme in found.items() if name != OURS},
            layers=record_layers(merged, self.union),
            curves=self._curves(best.plan.threshold),
            alpha=best.alpha,
            alphas=tuple(trial.record for trial in trials) if len(trials) > 1 else (),
            floors=self.floors,
            is_held_out=data.test is not None,
            latency_batch=min(settings.latency_batch, len(data.validation)),
            settings=plain(settings),
            environment=environment(data.train.inputs.device),
            notes=(
                *best.plan.notes,
                *_coarse(len(data.validation), settings.max_drop),
                *_verdicts(found, self.floors, settings.max_drop),
            ),
            seconds=self._seconds,
        )

    def _curves(self, threshold: Threshold) -> tuple[CurveRecord, ...]:
        """Return the curves of all layers and sets: of small layers to their end, of others as far as alphas asked for."""
        tasks = self.union.tasks
        tried = self.settings.alphas if self.settings.alpha is None else (self.settings.alpha,)
        reached = replace(threshold, alpha=max((alpha for alpha in tried if math.isfinite(alpha)), default=0.0))
        curves = []
        for space, search in self.traces.searches.items():
            until = None if len(search.searched) <= WHOLE_CURVE else reached
            for number in range(len(tasks)):
                if search.bits >> number & 1 and search.searched:
                    told = search.trace(1 << number, until)
                    name = self.union.spaces[space].name
                    curves.append(record_curve(name, names_of(1 << number, tasks), told, threshold))
        return tuple(curves)

    def _singles(self) -> tuple[MergedNetwork, ...]:
        return tuple(alone(network) for network in self.union.networks.values())

    def _teller(self, scheme: str, network: tuple[str, ...]) -> Callable[[RoundDone], None]:
        def tell(done: RoundDone) -> None:
            self._tell(
                RoundEnded(
                    scheme=scheme,
                    network=network,
                    number=done.number,
                    scores=done.scores,
                    flops=done.flops,
                    is_feasible=done.is_feasible,
                    seconds=self._seconds,
                )
            )

        return tell

    def _began(self, what: str) -> None:
        self._stage += 1
        trials = len(self.settings.alphas) if self.settings.alpha is None else 1
        stages = trials + 2 * self.settings.baselines + 1
        self._tell(StageBegan(what=what, number=self._stage, num_stages=stages, seconds=self._seconds))

    def _tell(self, event: Event) -> None:
        if self._progress is not None:
            self._progress(event)

    @property
    def _seconds(self) -> float:
        return time.perf_counter() - self._begin


def _record(network: tuple[str, ...], done: RoundDone) -> RoundRecord:
    return RoundRecord(
        network=network,
        number=done.number,
        scores=done.scores,
        flops=done.flops,
        is_feasible=done.is_feasible,
        seconds=done.seconds,
    )


def _coarse(num_samples: int, max_drop: float) -> list[str]:
    """Say so where the validation data cannot tell a drop that is allowed from one that is not."""
    allowed = max_drop * num_samples
    if not 0 < allowed < LEAST_ALLOWED:
        return []
    return [
        f"of {num_samples} validation samples {max_drop:g} are {allowed:.1f}: they tell little of so small a drop; give "
        "more of them, or allow a larger one"
    ]


def _verdicts(found: Mapping[str, SchemeRecord], floors: Mapping[str, float], max_drop: float) -> list[str]:
    """Say where a scheme is not good enough on validation data, and where ours loses more than allowed on held-out data."""
    said = [
        f"{scheme.name}: {task} scores {scheme.validation[task]:.4f} on validation data, below its floor {floor:.4f}"
        for scheme in found.values()
        for task, floor in floors.items()
        if scheme.validation[task] < floor
    ]
    for task, before in found[ORIGINAL].scores.items():
        lost = before - found[OURS].scores[task]
        if lost > max_drop and found[OURS].validation[task] >= floors[task]:
            said.append(f"{task} loses {lost:.4f} on held-out data, more than the {max_drop:g} that hold on validation data")
    return said
