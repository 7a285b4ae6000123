"""What removing unused heads saves, by their depth (MTLsys, figure 4): measured on networks that are made for it, untrained."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, fx, nn

from fusion.timer import Timing, time_interleaved
from serving.errors import ServingError
from serving.networks.heads import keep_tasks, tasks_of
from serving.networks.reading import read_network

DEPTHS = (3, 6, 9, 12, 15)
HIDDEN = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthTiming:
    """Latency of a network with heads of one depth.

    Attributes:
        depth: Linear layers of each head.
        kept: With all heads.
        removed: By task: with its head alone.
    """

    depth: int
    kept: Timing
    removed: Mapping[str, Timing]

    @property
    def kept_ms(self) -> float:
        """Median with all heads."""
        return 1e3 * self.kept.median_seconds

    @property
    def removed_ms(self) -> float:
        """Median with one head, the mean of all tasks."""
        return 1e3 * sum(timing.median_seconds for timing in self.removed.values()) / len(self.removed)

    @property
    def cut(self) -> float:
        """Share of the latency that removing the unused heads saves."""
        return 1 - self.removed_ms / self.kept_ms


def measure_head_depth(
    make_parent: Callable[[int], nn.Module],
    examples: tuple[Tensor, ...],
    depths: Sequence[int] = DEPTHS,
    *,
    max_seconds: float = 30.0,
) -> tuple[DepthTiming, ...]:
    """Time networks with heads of several depths, with all heads and with one; all of them in turns.

    Args:
        make_parent: Makes a network ``{task: tensor}`` with heads of so many layers.
        examples: What it takes, on its device; the batch is timed as it is.
        depths: Increasing.
        max_seconds: For all measurements together.

    Returns:
        One for each depth.

    Raises:
        ServingError: If there are no depths, or a network cannot be read or answers one task only.
    """
    if not depths or min(depths) < 1:
        raise ServingError(f"expected depths from 1, got {list(depths)}")
    networks: list[tuple[int, str | None, fx.GraphModule]] = []
    for depth in depths:
        network = read_network(make_parent(depth), examples, label=f"the network with heads of {depth} layers").eval()
        tasks = tasks_of(network)
        if len(tasks) < 2:
            raise ServingError(f"expected a network of at least two tasks, got one of {', '.join(tasks)}: no head is unused")
        networks += [(depth, None, network), *((depth, task, keep_tasks(network, [task])) for task in tasks)]
    timings = time_interleaved(
        [_run_of(network, examples) for *_, network in networks], max_seconds=max_seconds, device=examples[0].device
    )
    timed = [(depth, task, timing) for (depth, task, _), timing in zip(networks, timings, strict=True)]
    return tuple(
        DepthTiming(
            depth=depth,
            kept=next(timing for other, task, timing in timed if (other, task) == (depth, None)),
            removed={task: timing for other, task, timing in timed if other == depth and task is not None},
        )
        for depth in depths
    )


def with_deeper_heads(
    network: fx.GraphModule, examples: tuple[Tensor, ...], *, hidden: int = HIDDEN
) -> Callable[[int], nn.Module]:
    """Return what makes networks with the encoder of a given one and new heads of ReLU layers.

    Args:
        network: Whose tasks all branch off from one tensor.
        examples: What it takes.
        hidden: Units of each layer of a head but the last.

    Raises:
        ServingError: If its tasks share several tensors, or none.
    """
    encoder = _encoder_of(network)
    with torch.no_grad():
        outputs = {task: math.prod(output.shape[1:]) for task, output in network(*examples).items()}
        features = math.prod(encoder(*examples).shape[1:])
    return lambda depth: _Headed(encoder, features, outputs, depth, hidden)


class _Headed(nn.Module):
    def __init__(self, encoder: nn.Module, features: int, outputs: Mapping[str, int], depth: int, hidden: int) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.heads = nn.ModuleDict({f"head-{place}": _head(features, size, depth, hidden)
                                    for place, size in enumerate(outputs.values())})  # fmt: skip
        self._tasks = tuple(outputs)
        self.eval()

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        features = self.encoder(*inputs).flatten(1)
        return {task: head(features) for task, head in zip(self._tasks, self.heads.values(), strict=True)}


def _head(features: int, outputs: int, depth: int, hidden: int) -> nn.Sequential:
    widths = [features, *[hidden] * (depth - 1)]
    layers = [layer for before, after in pairwise(widths) for layer in (nn.Linear(before, after), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


def _encoder_of(network: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of a network that ends where its tasks part."""
    result = copy.deepcopy(network)
    (outputs,) = result.graph.output_node().args
    assert isinstance(outputs, dict), "the output of a network is {task: tensor}"
    serves: dict[fx.Node, set[str]] = {}
    for node in reversed(result.graph.nodes):
        own = {task for task, output in outputs.items() if output is node}
        serves[node] = own.union(*(serves[user] for user in node.users if user.op != "output"))
    shared = [node for node, tasks in serves.items() if len(tasks) == len(outputs)]
    borders = [node for node in shared if any(user not in shared for user in node.users)]
    if len(borders) != 1 or borders[0].op == "placeholder":
        raise ServingError(f"expected tasks that branch off from one computed tensor, but they share {len(borders)}")
    result.graph.output_node().args = (borders[0],)
    result.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    return fx.GraphModule(result, result.graph, "Encoder").eval()


def _run_of(network: nn.Module, examples: tuple[Tensor, ...]) -> Callable[[], object]:
    return lambda: network(*examples)
