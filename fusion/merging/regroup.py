"""Which tasks each neuron is to serve (*Pruning-Aware Merging*, section 5.2, Algorithm 2, and 5.4, Algorithm 3).

For every set of tasks the largest set of neurons is sought that tells little about the labels of the *other* tasks; it is to
serve that set alone. What is left serves all. Where we differ from the paper: neurons in several sets go back to their own
network (``on_overlap``), for the paper's rule leaves them nowhere and does not lead to unmerged networks for large
alpha; neurons that do not vary are left out first, for they tell nothing and would enter every set first; and guards
see to it that every neuron has input and every task neurons.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from math import comb

import torch
from torch import Tensor

from fusion.merging.config import RegroupConfig, Threshold
from fusion.merging.errors import MergeError
from fusion.merging.folding import foldable
from fusion.merging.guards import emptied, guard
from fusion.merging.information import inactive
from fusion.merging.labels import attributes, usable
from fusion.merging.layering import spaces_in_order
from fusion.merging.neurons import Neurons, bits_of
from fusion.merging.plan import Fold, Regrouping, SpacePlan
from fusion.merging.reconnect import own_groups
from fusion.merging.recording import Activity, record
from fusion.merging.samples import MergeData, Samples, check_samples
from fusion.merging.searching import Search, doubts, grow, resolve
from fusion.merging.union import Union


class Traces:
    """The searches in all spaces that several tasks have: every alpha takes a beginning of them (section 5.2).

    Attributes:
        union: The networks.
        config: Options; its ``alpha`` is the default of :meth:`regroup`.
        activities: What neurons did, by space that is regrouped.
        searches: By space that is regrouped.
        max_subset: Largest set of tasks to seek neurons for.
    """

    def __init__(self, union: Union, config: RegroupConfig, samples: Samples) -> None:
        self.union = union
        self.config = config
        self.max_subset = _max_subset(len(union.tasks), config)
        keep = config.estimator.num_samples * config.estimator.num_draws
        self.activities = record(union, samples.inputs, regrouped(union), keep=keep, seed=config.estimator.seed)
        self._owners = {space: own_groups(union, space) for space in union.spaces if space}
        self._foldable = {space: foldable(union, space, activity) for space, activity in self.activities.items()}
        labels = {task: samples.labels[task][:keep] for task in union.tasks}
        self.searches = {space: self._search(space, activity, labels) for space, activity in self.activities.items()}

    def regroup(self, alpha: float | None = None) -> Regrouping:
        """Decide for each neuron which tasks it is to serve.

        Searches go on where alpha is larger than any before, and are never repeated. The sets of several tasks depend on alpha
        also through the neurons that smaller sets leave: they are searched for when an alpha first asks for them.

        Args:
            alpha: In the configuration's unit; its own by default.

        Raises:
            MergeError: Alpha is out of range, labels cannot be measured, or dropping leaves a task without neurons in a layer.
        """
        threshold = Threshold(alpha=self.config.alpha if alpha is None else alpha, unit=self.config.alpha_unit)
        groups = {space: owners.group.clone() for space, owners in self._owners.items()}
        selected: dict[int, dict[int, tuple[int, ...]]] = {}
        entered: dict[int, Tensor] = {}
        for space, search in self.searches.items():
            groups[space][self.activities[space].dead | self._foldable[space]] = 0
            found = grow(search, threshold, self.max_subset)
            groups[space][list(search.searched)] = resolve(search, found, self.config.on_overlap)
            selected[space] = {bits: tuple(search.searched[each] for each in chosen) for bits, chosen in found.items()}
            entered[space] = _entered(len(groups[space]), selected[space].values())
        if self.config.on_overlap == "drop" and (problems := emptied(self.union, groups, self.searches)):
            raise MergeError(f"on_overlap='drop': {'; '.join(problems)}: use a smaller alpha, or 'origin' or 'share'")
        order = hidden(self.union)
        origins = {space: owners.group for space, owners in self._owners.items()}
        said = guard(self.union, groups, origins, entered, order, self.config.min_neurons)
        return Regrouping(
            tasks=self.union.tasks,
            threshold=threshold,
            on_overlap=self.config.on_overlap,
            max_subset=self.max_subset,
            spaces=tuple(self._plan(space, groups[space], selected.get(space)) for space in order),
            notes=(
                *self._limits(),
                *(doubt for search in self.searches.values() for doubt in doubts(search, threshold)),
                *said,
            ),
        )

    def _search(self, space: int, activity: Activity, labels: Mapping[str, Tensor]) -> Search:
        moving = ~torch.stack(inactive(activity.values)).any(0).cpu()
        searched = (activity.live & moving).nonzero().flatten()
        return Search(
            self.union.spaces[space].name,
            activity.values[:, searched.to(activity.values.device)],
            searched.tolist(),
            labels,
            self._owners[space],
            bits_of(self.union.spaces[space].widths, self.union.tasks),
            self.config.estimator,
        )

    def _plan(self, space: int, groups: Tensor, selected: Mapping[int, tuple[int, ...]] | None) -> SpacePlan:
        owners, about = self._owners[space], self.union.spaces[space]
        neurons = Neurons(origin=owners.origin, index=owners.index, group=groups)
        out, nowhere = groups == 0, torch.zeros_like(groups, dtype=torch.bool)
        activity = self.activities.get(space)
        dead = out & activity.dead if activity else nowhere
        constant = out & self._foldable[space] if activity else nowhere
        return SpacePlan(
            space=space,
            name=about.name,
            tasks=tuple(about.widths),
            is_regrouped=selected is not None,
            neurons=neurons.take((~out).nonzero().flatten()),
            selected=selected or {},
            dead=owners.take(dead.nonzero().flatten()),
            folded=tuple(self._fold(space, place) for place in constant.nonzero().flatten().tolist()),
            dropped=owners.take((out & ~dead & ~constant).nonzero().flatten()),
        )

    def _fold(self, space: int, place: int) -> Fold:
        owners, means = self._owners[space], self.activities[space].means
        values = {position: mean[place] for position, mean in means.items()}
        return Fold(origin=int(owners.origin[place]), index=int(owners.index[place]), values=values)

    def _limits(self) -> list[str]:
        """Say which neurons could not be regrouped, or not all of which could be looked at."""
        said = list(self.union.notes)
        for space in hidden(self.union):
            about = self.union.spaces[space]
            if space not in self.searches and len(about.widths) > 1:
                said.append(f"{about.name}: stays private, for it must stay as it is in {', '.join(sorted(about.frozen))}")
            elif space in self.searches:
                activity = self.activities[space]
                still = ~activity.dead & ~self._foldable[space]
                still[list(self.searches[space].searched)] = False
                if bool(still.any()):
                    said.append(f"{about.name}: neurons that hardly vary stay in their own networks ({int(still.sum())})")
                if (kept := activity.values.shape[2]) < activity.num_positions:
                    said.append(f"{about.name}: measured at {kept} of {activity.num_positions} positions, chosen at random")
        return said


def trace_networks(union: Union, data: MergeData, config: RegroupConfig) -> Traces:
    """Record what neurons do, and make ready to search for their groups.

    Args:
        union: The networks; they are not changed.
        data: Its training samples are drawn from.
        config: Options.

    Raises:
        MergeError: Nothing corresponds, too many groups, or samples that cannot be used; all of what is wrong.
    """
    problems = [*_no_correspondence(union)]
    try:
        check_samples(data.train, union.tasks, "training samples")
    except MergeError as error:
        raise MergeError("\n".join([*problems, str(error)])) from error
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(config.estimator.seed))
    samples = data.train.take(chosen[: config.probe_samples].to(data.train.inputs.device))
    problems += constant_labels(samples, union.tasks, config)
    if problems:
        raise MergeError("\n".join(problems))
    return Traces(union, config, samples)


def hidden(union: Union) -> list[int]:
    """Return the spaces of hidden layers, in the order of the layers."""
    outputs = {union.nodes[position].space for position in union.outputs.values()}
    return [space for space in spaces_in_order(union) if space and space not in outputs]


def regrouped(union: Union) -> list[int]:
    """Return the spaces that are regrouped: several tasks have them, and none needs them as they are."""
    return [space for space in hidden(union) if len(union.spaces[space].widths) > 1 and not union.spaces[space].frozen]


def constant_labels(samples: Samples, tasks: Collection[str], config: RegroupConfig) -> list[str]:
    """Say which tasks have labels that cannot be measured, or nothing to be informed about."""
    problems = []
    for task in tasks:
        try:
            usable(attributes(samples.labels[task], bins=config.estimator.bins), config.estimator.label_mode)
        except MergeError as error:
            problems.append(f"{task}: {error}")
    return problems


def _no_correspondence(union: Union) -> list[str]:
    if regrouped(union):
        return []
    why = "; ".join(union.notes) or "their layers must stay as they are"
    return [
        f"{', '.join(union.tasks)}: no corresponding layer at all, so that nothing can be merged ({why}); expected networks "
        "that begin with layers of the same kind, kernel, stride and size"
    ]


def _max_subset(num_tasks: int, config: RegroupConfig) -> int:
    """Return the largest set of tasks to seek neurons for; by default 1 for four tasks and more (section 5.4)."""
    given, largest = config.max_subset, num_tasks - 1
    if given is not None and given > largest:
        raise MergeError(f"max_subset is at most {largest} for {num_tasks} tasks, got {given}")
    if given is not None and num_tasks == 2:
        warnings.warn("max_subset has no effect for two tasks", UserWarning, stacklevel=4)
    chosen = given or (largest if num_tasks <= 3 else 1)
    num_groups = 1 + sum(comb(num_tasks, size) for size in range(1, chosen + 1))
    if num_groups > config.max_groups:
        raise MergeError(
            f"{num_tasks} tasks with max_subset {chosen} make {num_groups} groups in a layer, more than max_groups, "
            f"{config.max_groups}: lower max_subset or raise max_groups"
        )
    return chosen


def _entered(num_neurons: int, selected: Collection[Sequence[int]]) -> Tensor:
    """Return how late each neuron entered a set, -1 if it is in none."""
    entered = torch.full((num_neurons,), -1)
    for chosen in selected:
        entered[list(chosen)] = torch.maximum(entered[list(chosen)], torch.arange(len(chosen)))
    return entered
