"""One network of several, wired by a plan."""

from __future__ import annotations

from fusion.merging.errors import MergeError
from fusion.merging.folding import fold
from fusion.merging.merged import MergedNetwork
from fusion.merging.plan import Regrouping
from fusion.merging.reconnect import reconnect
from fusion.merging.union import Union


def reconnect_plan(union: Union, plan: Regrouping) -> MergedNetwork:
    """Make one network by a plan, untrained; the biases take over what constant neurons gave.

    Raises:
        MergeError: The plan is of other networks.
    """
    widths = {
        space.space: len(space.neurons) + len(space.dead) + len(space.folded) + len(space.dropped) for space in plan.spaces
    }
    expected = {number: sum(union.spaces[number].widths.values()) for number in widths if number in union.spaces}
    if plan.tasks != union.tasks or widths != expected:
        raise MergeError(
            f"the plan is of other networks: tasks {', '.join(plan.tasks)} with {list(widths.values())} neurons, "
            f"not {', '.join(union.tasks)} with {list(expected.values())}"
        )
    merged = reconnect(union, plan.groups)
    fold(merged, union, [(space.space, each) for space in plan.spaces for each in space.folded])
    return merged
