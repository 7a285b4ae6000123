"""Multi-Task Zipping (He, Zhou, Thiele, NeurIPS 2018), the paper's baseline 2: networks become one, layer by layer.

From input to output, neurons of two networks are paired, cheapest pairs first, and each pair becomes one neuron that serves
both, with the weights that change least for either; then the network is trained briefly. Nothing that is zipped can be switched
off for one task alone. Where the paper leaves a choice, or computes more than once what both tasks need:

- A neuron for both tasks has one value, so it reads only neurons for both. Neurons of the wider network that find no partner
  stay exclusive, and what they told a zipped neuron is regressed on what it may read.
- Batch normalization that follows a layer is part of its weights; afterwards the zipped neuron's own statistics
  stand in it, with the scale and shift that undo them. Other normalization and depthwise filters are averaged.
- Layers that add up (residual streams) have one pairing, by the sum of their distances; the layers of such a stage
  depend on each other's pairing, so that all pairings are found in turns, and the stage is zipped at once.
- A third network is zipped into the zipped pair, whose second moment then counts twice; it is paired with what the
  first ones share, not with what is exclusive to one of them.
- Convolutions are seen as linear layers over patches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fusion.merging.errors import MergeError
from fusion.merging.layers import MAKERS, Kind
from fusion.merging.matching import View, cheapest_pairs, distances, patches, restricted
from fusion.merging.merged import MergedNetwork
from fusion.merging.pairing import put_together
from fusion.merging.plan import Regrouping
from fusion.merging.planned import reconnect_plan
from fusion.merging.reconnect import reconnect
from fusion.merging.samples import MergeData
from fusion.merging.sites import Pairs, Site, find_sites, may_share
from fusion.merging.training import TrainConfig, Trainer
from fusion.merging.union import Union

NUM_SAMPLES = 1024  #: on which second moments are taken
BATCH_SIZE = 16  #: of them at a time: patches take kernel times as much memory as the feature
_Seen = tuple[Site, tuple[View, View]]
NUM_TURNS = 4  #: over the layers of a residual stage, at most, for pairings that depend on each other


def zip_networks(
    union: Union,
    data: MergeData,
    *,
    retrain_steps: int,
    train: TrainConfig,
    plan: Regrouping | None = None,
    progress: Callable[[str], None] | None = None,
) -> MergedNetwork:
    """Zip all layers that networks have in common, but for their outputs; with a plan, only the neurons that it shares.

    Args:
        union: The networks; they are copied, not changed.
        data: ``train`` gives the inputs for second moments and the samples to train on.
        retrain_steps: Training steps after each layer (after each stage of a residual network); 0 for none.
        train: How to train.
        plan: Which neurons are to be shared: of those that are to serve the same tasks, one of each network becomes one; those
            that find no partner stay exclusive. None: all are.
        progress: Told what has been zipped.

    Returns:
        A network whose zipped neurons serve all their tasks; their origin is the first network's neuron.

    Raises:
        MergeError: If the networks have no layer in common that can be zipped.
    """
    merged = reconnect(union) if plan is None else reconnect_plan(union, plan.apart())
    inputs = data.train.inputs[:NUM_SAMPLES]
    number = 0
    for stage in _stages(merged):
        zipped = False
        for left, right in _sides(len(union.tasks), partly=plan is not None):
            zipped |= _zip_stage(merged, stage, left, right, inputs, plan)
        if not zipped:
            continue
        number += 1
        if retrain_steps:
            config = replace(train, seed=train.seed + number)
            Trainer(merged, data.train, config).train(retrain_steps)
        if progress is not None:
            progress(f"zipped {', '.join(union.spaces[space].name for space in stage)}")
    if not number and plan is None:
        raise MergeError(
            f"{' and '.join(union.tasks)} have no layer in common but the outputs, so that nothing can be zipped; expected "
            f"networks that begin alike{''.join(f'; {note}' for note in union.notes)}"
        )
    return merged


def _sides(num_tasks: int, *, partly: bool) -> list[tuple[int, int]]:
    """Return which groups of neurons are zipped with which: each task's with those of all before it, or of any of them."""
    found: list[tuple[int, int]] = []
    for task in range(1, num_tasks):
        before = (1 << task) - 1
        lefts = sorted(range(1, before + 1), key=lambda bits: (-bits.bit_count(), bits)) if partly else [before]
        found += [(left, 1 << task) for left in lefts]
    return found


def _stages(merged: MergedNetwork) -> list[list[int]]:
    """Return the spaces from input to output; those that read each other, in a circle, together."""
    before: dict[int, set[int]] = {space: set() for space in merged.neurons}
    for step in merged.steps:
        if step.kind in MAKERS | {Kind.OPAQUE}:
            before[step.space] |= {merged.steps[source].space for source in step.inputs}
    for middle in before:
        for space in before:
            if middle in before[space]:
                before[space] |= before[middle]
    stages = {frozenset({space} | {other for other in before[space] if space in before[other]}) for space in before}
    return sorted((sorted(stage) for stage in stages if 0 not in stage), key=lambda stage: (len(before[stage[0]]), stage))


def _zip_stage(merged: MergedNetwork, stage: list[int], left: int, right: int, inputs: Tensor, plan: Regrouping | None) -> bool:
    """Zip the task ``right`` into what the tasks ``left`` share in the spaces of a stage; returns whether anything was."""
    sites = [site for space in stage for site in find_sites(merged, space, left, right, may_share(merged, space, plan))]
    if not sites:
        return False
    moments = _moments(merged, sites, left | right, inputs)
    seen = [(site, site.views(merged, moments[site.position])) for site in sites]
    pairs = _pairings(merged, seen)
    put_together(merged, pairs, {site.position: (site, views) for site, views in seen if _space(merged, site) in pairs})
    return bool(pairs)


def _moments(merged: MergedNetwork, sites: list[Site], wanted: int, inputs: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Return for each layer the second moment of its input as each side sees it."""
    sums: dict[int, list[Tensor]] = {}
    rows: dict[int, int] = {}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for batch in inputs.split(BATCH_SIZE):
            features = merged.features(batch, wanted)
            for site in sites:
                step, position = merged.steps[site.position], site.position
                read = patches(features[step.inputs[0]], step, site.kernel, generator).double()
                rows[position] = rows.get(position, 0) + len(read)
                taken = [read[:, columns.to(read.device)].flatten(1) for columns in site.columns[: 1 if site.is_common else 2]]
                if site.has_bias:
                    taken = [torch.cat([values, values.new_ones(len(values), 1)], 1) for values in taken]
                before = sums.get(position, [values.new_zeros(()) for values in taken])
                sums[position] = [total + values.T @ values for total, values in zip(before, taken, strict=True)]
    return {position: (totals[0] / rows[position], totals[-1] / rows[position]) for position, totals in sums.items()}


def _pairings(merged: MergedNetwork, seen: Sequence[_Seen]) -> Pairs:
    """Return the pairs of each space, in turns until they stay: a layer has a say as far as what it reads has been paired."""
    spaces = {
        _space(merged, site): [other for other in seen if _space(merged, other[0]) == _space(merged, site)] for site, _ in seen
    }
    reads_own = any(merged.steps[merged.steps[site.position].inputs[0]].space in spaces for site, _ in seen)
    pairs: Pairs = {}
    for _ in range(NUM_TURNS if reads_own else 1):
        before = dict(pairs)
        for space, sites in spaces.items():
            cost = _cost(merged, sites, pairs)
            if cost is not None:
                first, second = cheapest_pairs(cost)
                pairs[space] = (sites[0][0].rows[0][first], sites[0][0].rows[1][second])
        if _same(before, pairs):
            break
    return _closed(merged, pairs, spaces)


def _cost(merged: MergedNetwork, sites: Sequence[_Seen], pairs: Pairs) -> Tensor | None:
    """Return the distance of each neuron from each, over the layers that can tell; None if none can."""
    total: Tensor | None = None
    for site, views in sites:
        kept = site.shared(merged, pairs)
        if kept is not None:
            (one, lost), (other, missed) = (restricted(view, own) for view, own in zip(views, kept, strict=True))
            cost = distances(one, other) + lost[:, None] + missed[None, :]
            total = cost if total is None else total + cost
    return total


def _closed(merged: MergedNetwork, pairs: Pairs, spaces: Mapping[int, Sequence[_Seen]]) -> Pairs:
    """Leave out spaces with a layer whose zipped neurons would have nothing to read, until there is none."""
    while True:
        blind = {space for space in pairs if any(site.shared(merged, pairs) is None for site, _ in spaces[space])}
        if not blind:
            return pairs
        pairs = {space: found for space, found in pairs.items() if space not in blind}


def _same(one: Pairs, other: Pairs) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(first, second) for space in one for first, second in zip(one[space], other[space], strict=True)
    )


def _space(merged: MergedNetwork, site: Site) -> int:
    return merged.steps[site.position].space
