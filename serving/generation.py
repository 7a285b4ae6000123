"""A family of pruned variants out of one multi-task network: train, prune, remove heads, fine-tune (MTLsys, section 4.2).

The paper's 40 variants of its multi-task system are ten ratios for all tasks and for each of three; the 30 of the single-task
system are ten ratios of each of three networks that were trained for one task alone. Each of the two stages of training is one
batch of jobs for whoever trains.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from fusion.search.hashing import hash_tensors, tensors_of
from serving.data import TaskData
from serving.drafts import Draft
from serving.errors import ServingError
from serving.networks.heads import keep_tasks
from serving.plans import Plan, ratio_name, single_name
from serving.progress import LeftOut, NetworkDone, Stage, StageBegan, Tell, tell_nobody
from serving.pruning import Criterion, Pruned, amounts, gone, prune_network
from serving.records import Source, TaskSpec
from serving.subsets import subset_name, subsets_of
from serving.tasks import weighted_sum
from serving.training import Train, TrainJob, train_plainly

PARENT = "parent"
_NUM_SCORED = 512  # training samples by whose loss channels are scored, where the criterion asks for one


@dataclass(slots=True, kw_only=True, eq=False)
class _Parent:
    """A network that variants are made of, for all tasks or for one."""

    name: str
    network: fx.GraphModule
    tasks: tuple[str, ...]
    subsets: tuple[tuple[str, ...], ...]
    is_single: bool
    trained: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Whole:
    """The unpruned network of some tasks, and what it costs."""

    network: fx.GraphModule
    amounts: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Cut:
    """A pruned network of some tasks, before it is fine-tuned."""

    draft: Draft
    tasks: tuple[TaskSpec, ...]


def generate(
    network: fx.GraphModule,
    tasks: Sequence[TaskSpec],
    data: TaskData,
    plan: Plan,
    *,
    train: Train = train_plainly,
    tell: Tell = tell_nobody,
) -> Iterator[Draft]:
    """Make the variants of a plan and yield each when it is fine-tuned.

    What cannot be made is left out and told, the rest goes on.

    Args:
        network: As :func:`serving.networks.reading.read_network` gives it; not changed.
        tasks: Of all its outputs, with the weights of their losses.
        data: To train on.
        plan: What to make.
        train: Who trains.
        tell: Called with what happens.

    Raises:
        ServingError: If nothing at all can be made; the message says why.
    """
    maker = _Maker(tuple(tasks), data, plan, train, tell)
    cuts = {cut.draft.name: cut for cut in maker.pruned(maker.trained(maker.parents(network)))}
    if not cuts:
        raise ServingError("\n".join(f"{told.name}: {told.reason}" for told in maker.left_out) or "there is nothing to make")
    tell(StageBegan(stage=Stage.FINE_TUNE, names=tuple(cuts)))
    jobs = [maker.job(cut.draft.name, cut.draft.module, cut.tasks, plan.finetune_epochs) for cut in cuts.values()]
    num_made = 0
    for done in train(jobs):
        if done.problem is not None:
            maker.leave_out(done.name, done.problem)
            continue
        tell(NetworkDone.of(Stage.FINE_TUNE, done))
        num_made += 1
        draft = cuts[done.name].draft
        fine_tuning = {"epochs": plan.finetune_epochs, "loss": _finite(done.loss), "seconds": round(done.seconds, 3)}
        draft.module.eval()
        yield replace(draft, provenance={**draft.provenance, "fine_tuning": fine_tuning})
    if not num_made:
        raise ServingError("\n".join(f"{told.name}: {told.reason}" for told in maker.left_out))


class _Maker:
    """The stages, with what they share."""

    def __init__(self, tasks: tuple[TaskSpec, ...], data: TaskData, plan: Plan, train: Train, tell: Tell) -> None:
        self._tasks, self._data, self._plan, self._train, self._tell = tasks, data, plan, train, tell
        self._names = tuple(task.name for task in tasks)
        self._examples: tuple[Tensor, ...] = data.take(slice(0, 2)).inputs
        self._digest = data.digest()
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(plan.seed))
        self._scored = data.take(order[:_NUM_SCORED])
        self.left_out: list[LeftOut] = []

    def leave_out(self, name: str, reason: str) -> None:
        """Note what could not be made, and tell."""
        self.left_out.append(LeftOut(name=name, reason=reason))
        self._tell(self.left_out[-1])

    def parents(self, network: fx.GraphModule) -> list[_Parent]:
        """Return copies of the network: whole, and for each task alone; none of them trained here yet."""
        plan, names = self._plan, self._names
        found = []
        if plan.systems != "single":
            whole, subsets = keep_tasks(network, names), subsets_of(names, plan.subsets)
            found.append(_Parent(name=PARENT, network=whole, tasks=names, subsets=subsets, is_single=False))
        if plan.systems != "multi":
            for task in names:
                alone, own = keep_tasks(network, (task,)), (task,)
                found.append(_Parent(name=single_name(task), network=alone, tasks=own, subsets=(own,), is_single=True))
        return found

    def trained(self, parents: Sequence[_Parent]) -> list[_Parent]:
        """Train all parents in one batch and return those that could be."""
        epochs = self._plan.train_epochs
        by_name = {parent.name: parent for parent in parents}
        self._tell(StageBegan(stage=Stage.TRAIN, names=tuple(by_name)))
        jobs = [self.job(parent.name, parent.network, self._specs(parent.tasks), epochs) for parent in parents]
        for done in self._train(jobs):
            if done.problem is not None:
                self.leave_out(done.name, done.problem)
                del by_name[done.name]
                continue
            self._tell(NetworkDone.of(Stage.TRAIN, done))
            network = by_name[done.name].network.eval()
            weights = hash_tensors(tensors_of(network).items())
            by_name[done.name].trained = {"epochs": epochs, "loss": _finite(done.loss), "weights": weights}
        return list(by_name.values())

    def pruned(self, parents: Sequence[_Parent]) -> Iterator[_Cut]:
        """Prune each parent to each ratio and take the subsets' networks out of it."""
        ratios = sorted(set(self._plan.ratios))
        self._tell(
            StageBegan(stage=Stage.PRUNE, names=tuple(f"{each.name}-{ratio_name(r)}" for r in ratios for each in parents))
        )
        wholes = {parent.name: {subset: self._unpruned(parent, subset) for subset in parent.subsets} for parent in parents}
        for ratio in ratios:
            for parent in parents:
                cuts = partial(self._cuts, parent, ratio, wholes[parent.name])
                yield from self._tried(f"{parent.name}-{ratio_name(ratio)}", cuts)

    def job(self, name: str, network: nn.Module, tasks: tuple[TaskSpec, ...], epochs: int) -> TrainJob:
        """Return the job of training one network."""
        plan = self._plan
        return TrainJob(
            name=name,
            network=network,
            tasks=tasks,
            data=self._data,
            epochs=epochs,
            batch_size=plan.batch_size,
            lr=plan.lr,
            seed=plan.seed,
        )

    def _specs(self, names: Sequence[str]) -> tuple[TaskSpec, ...]:
        return tuple(task for task in self._tasks if task.name in names)

    def _tried(self, name: str, make: Callable[[], Iterable[_Cut]]) -> list[_Cut]:
        """Return what was made in time, or note why it cannot be."""
        begin = time.perf_counter()
        try:
            made = list(make())
        except ServingError as error:
            self.leave_out(name, str(error))
            return []
        self._tell(NetworkDone(stage=Stage.PRUNE, name=name, seconds=time.perf_counter() - begin, loss=math.nan))
        return made

    def _unpruned(self, parent: _Parent, subset: tuple[str, ...]) -> _Whole:
        network = parent.network if subset == parent.tasks else keep_tasks(parent.network, subset)
        return _Whole(network=network, amounts=amounts(network, self._examples))

    def _cuts(self, parent: _Parent, ratio: float, wholes: Mapping[tuple[str, ...], _Whole]) -> Iterator[_Cut]:
        """Yield the networks of a parent's subsets, pruned to a ratio."""
        for_parent = self._plan.prune_for == "parent"
        shared = self._prune(parent.network, parent.tasks, ratio) if for_parent else None
        for subset, whole in wholes.items():
            pruned = shared or self._prune(whole.network, subset, ratio)
            network = keep_tasks(pruned.network, subset)
            source = Source.SINGLE if parent.is_single else Source.PRUNED if subset == self._names else Source.HEAD_REMOVED
            prefix = parent.name if parent.is_single else subset_name(subset, self._names)
            yield _Cut(
                tasks=self._specs(subset),
                draft=Draft(
                    name=f"{prefix}-{ratio_name(ratio)}",
                    module=network,
                    tasks=subset,
                    source=source,
                    parent=parent.name,
                    ratio=ratio,
                    achieved=gone(whole.amounts, amounts(network, self._examples)),
                    provenance=self._provenance(parent, subset, pruned),
                ),
            )

    def _prune(self, network: fx.GraphModule, tasks: tuple[str, ...], ratio: float) -> Pruned:
        plan = self._plan
        return prune_network(
            network,
            self._examples,
            ratio,
            criterion=plan.criterion,
            ratio_of=plan.ratio_of,
            round_to=plan.round_to,
            loss=partial(self._loss, self._specs(tasks)) if plan.criterion == Criterion.TAYLOR else None,
        )

    def _loss(self, tasks: tuple[TaskSpec, ...], network: nn.Module) -> Tensor:
        """Return the loss by whose gradients a criterion tells what channels are worth."""
        return weighted_sum(tasks, network(*self._scored.inputs), self._scored.labels).mean()

    def _provenance(self, parent: _Parent, subset: tuple[str, ...], pruned: Pruned) -> dict[str, Any]:
        """Return how a variant is made: what the plan says, on which data, out of which weights."""
        plan = self._plan
        pruning = {"criterion": plan.criterion, "ratio_of": plan.ratio_of, "for": plan.prune_for, "round_to": plan.round_to}
        return {
            "made_from": {"name": parent.name, **parent.trained},
            "pruning": {**pruning, "kept": list(pruned.kept)},
            "training": {"optimizer": "Adam", "lr": plan.lr, "batch_size": plan.batch_size, "seed": plan.seed},
            "loss_weights": {task.name: task.weight for task in self._specs(subset)},
            "data": {"samples": len(self._data), "digest": self._digest},
            "torch": str(torch.__version__),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
