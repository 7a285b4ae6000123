"""Make one neuron of two in a merged network, in place: rows, columns, normalization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusion.merging.layers import MAKERS, Kind
from fusion.merging.matching import View, restricted, shared_weights
from fusion.merging.merged import MergedNetwork, Part, Step
from fusion.merging.neurons import Neurons, order_of
from fusion.merging.sites import Pairs, Site, affine, spread


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Order:
    """The neurons of a space once pairs are one, and where each one went."""

    neurons: Neurons
    moved: Tensor

    @classmethod
    def of(cls, merged: MergedNetwork, space: int, first: Tensor, second: Tensor) -> _Order:
        old = merged.neurons[space]
        group = old.group.clone()
        group[first] |= group[second]
        stays = torch.ones(len(old), dtype=torch.bool)
        stays[second] = False
        kept = stays.nonzero().flatten()
        left = Neurons(origin=old.origin[kept], index=old.index[kept], group=group[kept])
        order = order_of(left, len(merged.tasks))
        moved = torch.empty(len(old), dtype=torch.int64)
        moved[kept[order]] = torch.arange(len(kept))
        moved[second] = moved[first]
        return cls(neurons=left.take(order), moved=moved)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Best:
    """The neurons that stand best for pairs: what they read (neurons of the input's space), and their value's statistics."""

    rows: Tensor
    read: Tensor
    weights: Tensor
    mean: Tensor
    variance: Tensor


def put_together(merged: MergedNetwork, pairs: Pairs, sites: Mapping[int, tuple[Site, tuple[View, View]]]) -> None:
    """Make each pair one neuron, which has the first one's origin and both sides' tasks.

    Args:
        merged: Changed in place; its parameters have no gradients afterwards, and no optimizer's state fits them.
        pairs: By space.
        sites: By position, the layers whose weights are to be the best for both, and how both sides see them. What else the
            neurons of a pair have (other normalization, depthwise filters) becomes the mean over tasks.
    """
    best = {position: _best(merged, site, pairs, views) for position, (site, views) in sites.items()}
    channels = [merged.channels(step) for step in merged.steps]
    orders = {space: _Order.of(merged, space, *found) for space, found in pairs.items()}
    means = {int(position): _means(merged, int(position), orders) for position in merged.parts}
    merged.neurons |= {space: order.neurons for space, order in orders.items()}
    for position, tensors in means.items():
        step = merged.steps[position]
        if step.kind in MAKERS:
            source = merged.steps[step.inputs[0]]
            moved = _places(merged, source, channels[step.inputs[0]], orders)
            tensors["weight"] = _columns(tensors["weight"], moved, len(merged.channels(source)), source.positions, step)
        _store(merged.part(position), tensors)
    for position, found in best.items():
        _overwrite(merged, sites[position][0], found, orders)
    merged.set_masks()


def _best(merged: MergedNetwork, site: Site, pairs: Pairs, views: tuple[View, View]) -> _Best:
    step = merged.steps[site.position]
    kept = site.shared(merged, pairs)
    assert kept is not None
    sides = []
    for side in (0, 1):
        rows = torch.searchsorted(site.rows[side], pairs[step.space][side])
        chosen = View(weights=views[side].weights[rows], moment=views[side].moment)
        sides.append(restricted(chosen, kept[side])[0])
    weights = shared_weights(sides[0], sides[1])
    moment = (sides[0].moment + sides[1].moment) / (site.weight + 1)
    mean = weights @ moment[:, -1]
    source = merged.channels(merged.steps[step.inputs[0]])
    return _Best(
        rows=pairs[step.space][0],
        read=source[site.channels(merged, pairs)[0]],
        weights=weights,
        mean=mean,
        variance=(((weights @ moment) * weights).sum(1) - mean**2).clamp_min(0),
    )


def _means(merged: MergedNetwork, position: int, orders: Mapping[int, _Order]) -> dict[str, Tensor]:
    """Return the tensors of a step with the mean over tasks where neurons have become one; columns are as they were."""
    step, part = merged.steps[position], merged.part(position)
    tensors = {name: value.detach() for name, value in part.state_dict(keep_vars=True).items()}
    if step.kind in MAKERS:
        tensors["weight"] = part.masked().detach()
    if step.space not in orders:
        return tensors
    channels = merged.channels(step)
    moved = orders[step.space].moved[channels]
    new = orders[step.space].neurons.of(step.tasks)
    places = torch.searchsorted(new, moved)
    counts = torch.tensor([group.bit_count() for group in merged.groups(step).tolist()], dtype=torch.float64)

    def mean(value: Tensor) -> Tensor:
        shares = counts / counts.new_zeros(len(new)).index_add(0, places, counts)[places]
        weighted = value.double() * shares.to(value.device).view(-1, *[1] * (value.ndim - 1))
        return value.new_zeros((len(new), *value.shape[1:]), dtype=torch.float64).index_add(
            0, places.to(value.device), weighted
        )

    if step.kind is not Kind.NORM:
        return {name: mean(value).to(value.dtype) for name, value in tensors.items()}
    scale, shift = (mean(value) for value in affine(merged, position))
    centre, spread_ = mean(tensors["running_mean"]), mean(tensors["running_var"])
    return _normalization(merged, position, scale, shift, centre, spread_)


def _overwrite(merged: MergedNetwork, site: Site, best: _Best, orders: Mapping[int, _Order]) -> None:
    """Give pairs the weights that are best for both."""
    step, part = merged.steps[site.position], merged.part(site.position)
    source = merged.steps[step.inputs[0]]
    rows = _places(merged, step, best.rows, orders)
    columns = spread(_places(merged, source, best.read, orders), site.tail)
    assert part.weight is not None
    with torch.no_grad():
        flat = part.weight.flatten(1)
        fresh = flat.new_zeros((len(rows), flat.shape[1]))
        fresh[:, columns] = best.weights[:, : len(columns)].to(fresh)
        part.weight[rows] = fresh.view(-1, *part.weight.shape[1:])
        if site.norm is None:
            if part.bias is not None:
                part.bias[rows] = best.weights[:, -1].to(part.bias)
            return
        if part.bias is not None:
            part.bias[rows] = 0.0
        ones = torch.ones_like(best.mean)
        tensors = _normalization(merged, site.norm, ones, best.weights[:, -1], best.mean - best.weights[:, -1], best.variance)
        for name, value in tensors.items():
            getattr(merged.part(site.norm), name)[rows] = value


def _normalization(
    merged: MergedNetwork, position: int, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor
) -> dict[str, Tensor]:
    """Return the tensors of a normalization that multiplies by ``scale`` and adds ``shift``.

    Its statistics are ``mean`` and ``variance``, unless it has no weights of its own: then they give way.
    """
    part, (_, eps) = merged.part(position), merged.steps[position].args
    assert part.running_mean is not None
    variance = variance if part.weight is not None else scale.abs().pow(-2) - eps
    mean = mean if part.bias is not None else -shift / scale
    found = {"running_mean": mean, "running_var": variance}
    if part.weight is not None:
        found["weight"] = scale * (variance + eps).sqrt()
    if part.bias is not None:
        found["bias"] = shift + mean * scale
    return {name: value.to(part.running_mean) for name, value in found.items()}


def _places(merged: MergedNetwork, step: Step, positions: Tensor, orders: Mapping[int, _Order]) -> Tensor:
    """Return which channels of a step's feature neurons have become, given their former positions in its space."""
    moved = orders[step.space].moved[positions] if step.space in orders else positions
    return torch.searchsorted(merged.channels(step), moved)


def _columns(weight: Tensor, moved: Tensor, count: int, positions: int, step: Step) -> Tensor:
    """Return a weight with columns added up where their neurons have become one; of a pair each row reads one."""
    if step.kind is Kind.LINEAR:
        moved, count = spread(moved, positions), count * positions
    shape = (len(weight), count, *weight.shape[2:])
    return weight.new_zeros(shape).index_add(1, moved.to(weight.device), weight)


def _store(part: Part, tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        held = getattr(part, name)
        if isinstance(held, nn.Parameter):
            held.data, held.grad = value.clone(), None
        else:
            setattr(part, name, value.clone())
