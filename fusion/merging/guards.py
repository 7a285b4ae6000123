"""Two guards over the groups of neurons (design 5): nothing without input, no task without neurons. Both send neurons home."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from fusion.merging.layers import MAKERS
from fusion.merging.neurons import bits_of, names_of
from fusion.merging.union import Union

Groups = dict[int, Tensor]
"""By space, bits of the tasks of each neuron in the order of ``own_groups``; 0 for neurons that are left out."""


def guard(
    union: Union, groups: Groups, origins: Mapping[int, Tensor], entered: Mapping[int, Tensor], order: Sequence[int], least: int
) -> list[str]:
    """Give neurons back to their own networks until every group has input and every task has neurons.

    Each neuron moves at most once, so this ends, at the latest with every network for itself.

    Args:
        union: The networks.
        groups: Of all spaces; changed in place.
        origins: Bit of each neuron's own task.
        entered: By regrouped space, how late a neuron entered a set: the later, the more it tells, and the sooner it is taken
            back. Below 0 for neurons that tell nothing.
        order: Of the spaces.
        least: Neurons that every task keeps in a space, if its network had as many.

    Returns:
        What was done, in plain words.
    """
    notes: list[str] = []
    moved = True
    while moved:
        moved = False
        for space in order:
            if space in entered:
                said = [
                    *_without_input(union, groups, origins[space], space),
                    *_too_few(union, groups, origins[space], entered[space], space, least),
                ]
                notes += said
                moved |= bool(said)
    return notes


def _without_input(union: Union, groups: Groups, origin: Tensor, space: int) -> list[str]:
    """Give back the neurons of groups for which a layer that makes them has nothing to read."""
    notes = []
    own = groups[space]
    for node in union.nodes:
        if node.space != space or node.kind not in MAKERS:
            continue
        source = union.nodes[node.inputs[0]]
        if source.space == 0:
            continue
        here, there = bits_of(node.tasks, union.tasks), bits_of(source.tasks, union.tasks)
        readable = (groups[source.space] & there).unique().tolist()
        for group in own.unique().tolist():
            needed = group & here
            if not needed or any(needed & ~other == 0 for other in readable):
                continue
            which = (own == group) & (own != origin)
            if bool(which.any()):
                own[which] = origin[which]
                notes.append(
                    f"{node.name}: {int(which.sum())} neurons of {_named(group, union.tasks)} are back in their own networks, "
                    f"for {union.spaces[source.space].name!r} has no neuron for all of these tasks"
                )
    return notes


def _too_few(union: Union, groups: Groups, origin: Tensor, entered: Tensor, space: int, least: int) -> list[str]:
    """Give back to tasks with too few neurons those of their own network, the most informative first."""
    notes = []
    own = groups[space]
    for task, width in union.spaces[space].widths.items():
        bit = bits_of([task], union.tasks)
        missing = min(least, width) - int((own & bit != 0).sum())
        if missing > 0:
            lost = ((origin == bit) & (own & bit == 0)).nonzero().flatten()
            back = lost[entered[lost].argsort(descending=True, stable=True)[:missing]]
            own[back] = bit
            notes.append(
                f"{union.spaces[space].name}: {len(back)} neurons are back in {task}, which would keep less than {least}"
            )
    return notes


def _named(group: int, tasks: Sequence[str]) -> str:
    return "+".join(names_of(group, tasks))


def emptied(union: Union, groups: Groups, spaces: Collection[int]) -> list[str]:
    """Name the tasks that have no neuron left in a space."""
    return [
        f"{union.spaces[space].name}: {task} has no neuron left"
        for space in spaces
        for task in union.spaces[space].widths
        if not bool((groups[space] & bits_of([task], union.tasks) != 0).any())
    ]
