"""Networks for some of the tasks (MTLsys, section 4.2: unused heads are removed)."""

from __future__ import annotations

import copy
from collections.abc import Collection

from torch import fx

from fusion.graph.normalize import drop_dead
from serving.errors import ServingError


def tasks_of(network: fx.GraphModule) -> tuple[str, ...]:
    """Return the tasks that a network answers, in order."""
    return tuple(_outputs(network))


def keep_tasks(network: fx.GraphModule, tasks: Collection[str]) -> fx.GraphModule:
    """Return a copy that answers only some tasks; what only serves others is gone, weights included.

    Args:
        network: Of :func:`serving.networks.reading.read_network`. It is not changed.
        tasks: One or more of its tasks, in any order.

    Returns:
        A network in the same mode that takes the same inputs. It shares no storage with the other, and answers as it does,
        bit for bit.

    Raises:
        ServingError: If there is no task, or one that the network does not answer.
    """
    known = tasks_of(network)
    unknown = sorted(set(tasks) - set(known))
    if unknown or not tasks:
        raise ServingError(f"expected some of the tasks {', '.join(known)}; got {', '.join(unknown) or 'none'}")
    result = copy.deepcopy(network)
    kept = {task: node for task, node in _outputs(result).items() if task in tasks}
    result.graph.output_node().args = (kept,)
    drop_dead(result.graph)  # inputs stay, so that all variants are called alike
    return fx.GraphModule(result, result.graph, "Network").train(network.training)


def _outputs(network: fx.GraphModule) -> dict[str, fx.Node]:
    (outputs,) = network.graph.output_node().args
    assert isinstance(outputs, dict), "the output of a network is {task: tensor}"
    return outputs  # pyrefly: ignore[bad-return] - reading made it so
