"""What removing unused heads saves, by their depth (MTLsys, figure 4): measured on networks that are made for it, untrained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from fusion.timer import Timing, time_interleaved
from serving.errors import ServingError
from serving.networks.heads import keep_tasks, tasks_of
from serving.networks.reading import read_network

DEPTHS = (3, 6, 9, 12, 15)


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
        make_parent: Makes a network ``{task: tensor}`` with heads of so many layers; a graph is taken as it is.
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
        made = make_parent(depth)
        label = f"the network with heads of {depth} layers"
        network = made if isinstance(made, fx.GraphModule) else read_network(made, examples, label=label).eval()
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


def _run_of(network: nn.Module, examples: tuple[Tensor, ...]) -> Callable[[], object]:
    return lambda: network(*examples)
