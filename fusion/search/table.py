"""What blocks and adapters cost, so that a graph's cost is a sum (GMorph, EuroSys'24, section 5; ours: measured once, R1).

Blocks are measured in place, as stages of their running model: one by one, warm in the caches, they are up to a third faster
than in service. The rest of what a whole run of the original takes, such as going from step to step, is spread over the steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fusion.graph.errors import FusionError
from fusion.graph.feature import Feature, adapter_capacity, adapter_flops
from fusion.search.absgraph import AdapterId, BlockId, Graph, Space, capacities, flops
from fusion.search.linear_model import LinearModel, fit_linear

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a table holds for.

    Attributes:
        device: Its name, such as ``cpu`` or that of a GPU.
        num_threads: Of torch on the CPU.
        dtype: Of the weights.
        batch_size: Samples per run.
    """

    device: str
    num_threads: int
    dtype: str
    batch_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one step costs for a batch.

    Attributes:
        seconds: Of a run that little gets in the way of, see :class:`fusion.timer.Timing`.
        iqr_seconds: Distance of the quartiles.
        working_bytes: Largest sum of tensors that are alive within it at once, its output among them, its input not.
    """

    seconds: float
    iqr_seconds: float
    working_bytes: int


class AdapterKind(NamedTuple):
    """Adapters between the same features cost the same."""

    source: Feature
    target: Feature


Measure = Callable[[AdapterKind], Cost]


class CostTable:
    """Costs of the blocks and adapters of a space.

    Args:
        space: The blocks.
        conditions: What it was measured in.
        blocks: Cost of every block.
        adapters: Cost of kinds of adapter. Those that are missing are predicted by a model fitted to the others, or measured
            when first asked for, see :meth:`attach`.
        step_seconds: What each step costs beside itself.
        original_seconds: What a whole run of the original took when the table was measured.

    Raises:
        FusionError: If a block of the space is missing.
    """

    def __init__(
        self,
        space: Space,
        *,
        conditions: Conditions,
        blocks: Mapping[BlockId, Cost],
        adapters: Mapping[AdapterKind, Cost],
        step_seconds: float = 0.0,
        original_seconds: float | None = None,
    ) -> None:
        missing = [block for block in _all_blocks(space) if block not in blocks]
        if missing:
            raise FusionError(f"expected the cost of each block of {', '.join(space.tasks)}; {missing[0]} has none")
        self.space = space
        self.conditions = conditions
        self.blocks = dict(blocks)
        self.adapters = dict(adapters)
        self.step_seconds = step_seconds
        self.original_seconds = original_seconds
        self._measure: Measure | None = None
        self._predicted: dict[AdapterKind, Cost] = {}
        self._model: LinearModel | None = None
        self._of_blocks = {block: max(0.0, cost.seconds + step_seconds) for block, cost in self.blocks.items()}
        self._of_adapters: dict[AdapterId, float] = {}

    def predict(self, graph: Graph) -> float:
        """Return the seconds that one run of a graph takes: the sum of its steps."""
        of_blocks, adapters = self._of_blocks, set()
        total = 0.0
        for block, edge in graph.edges:
            total += of_blocks[block]
            if edge.adapter is not None:
                adapters.add(edge.adapter)
        return total + sum(self._adapter_seconds(adapter) for adapter in adapters)

    def flops(self, graph: Graph) -> int:
        """Return the floating-point operations per sample."""
        return flops(graph)

    def parameters(self, graph: Graph) -> int:
        """Return the number of parameters."""
        return capacities(graph).total

    def memory(self, graph: Graph) -> int:
        """Return the bytes of all parameters, and of the activations when most are alive during one run.

        The graph is run a branch after the other, as :class:`fusion.graph.tree.FusedTree` does. Not counted are inputs,
        answers that wait for the other tasks', and what an operator takes within itself.
        """
        item = _bytes_per_item(self.conditions.dtype)
        return self.parameters(graph) * item + _peak(graph, self)

    def adapter(self, adapter: AdapterId) -> Cost:
        """Return the cost of an adapter: known, else measured, else predicted."""
        kind = self._kind(adapter)
        if kind not in self.adapters and self._measure is not None:
            self.adapters[kind] = self._measure(kind)
            self._model = None
        return self.adapters.get(kind) or self._predict_adapter(kind)

    def predicted_adapters(self, graph: Graph) -> list[AdapterId]:
        """Return the adapters of a graph of which the cost is not measured but predicted by a fitted model."""
        return [adapter for adapter in graph.adapters() if self._kind(adapter) not in self.adapters]

    def attach(self, measure: Measure) -> None:
        """From now on measure a kind of adapter when it is first asked for, also those that were predicted before."""
        self._measure = measure
        self._predicted.clear()
        self._of_adapters.clear()

    def to_json(self) -> dict[str, Any]:
        """Return the table as plain values."""
        return {
            "format": FORMAT,
            "conditions": asdict(self.conditions),
            "space": self.space.to_json(),
            "step_seconds": self.step_seconds,
            "original_seconds": self.original_seconds,
            "blocks": [[*block, asdict(cost)] for block, cost in sorted(self.blocks.items())],
            "adapters": [[kind.source.to_json(), kind.target.to_json(), asdict(cost)] for kind, cost in self.adapters.items()],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CostTable:
        """Return the table that ``to_json`` wrote; it measures nothing.

        Raises:
            FusionError: If it is of another format.
        """
        if data.get("format") != FORMAT:
            raise FusionError(f"expected a cost table of format {FORMAT}, got {data.get('format')!r}; measure it anew")
        return cls(
            Space.from_json(data["space"]),
            conditions=Conditions(**data["conditions"]),
            blocks={BlockId(task, op): Cost(**cost) for task, op, cost in data["blocks"]},
            adapters={
                AdapterKind(Feature.from_json(source), Feature.from_json(target)): Cost(**cost)
                for source, target, cost in data["adapters"]
            },
            step_seconds=data["step_seconds"],
            original_seconds=data["original_seconds"],
        )

    def save(self, path: Path) -> None:
        """Write the table to a file."""
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> CostTable:
        """Read the file that ``save`` wrote."""
        return cls.from_json(json.loads(path.read_text()))

    def _kind(self, adapter: AdapterId) -> AdapterKind:
        return AdapterKind(self.space.boundary(adapter.source), self.space.info(adapter.target).input)

    def _adapter_seconds(self, adapter: AdapterId) -> float:
        if adapter not in self._of_adapters:
            self._of_adapters[adapter] = max(0.0, self.adapter(adapter).seconds + self.step_seconds)
        return self._of_adapters[adapter]

    def _predict_adapter(self, kind: AdapterKind) -> Cost:
        if kind not in self._predicted:
            if self._model is None:
                self._model = self._fit()
            item, batch = _bytes_per_item(self.conditions.dtype), self.conditions.batch_size
            working = 2 * math.prod(kind.target.shape) * batch * item
            self._predicted[kind] = Cost(seconds=self._model(self._work(kind)), iqr_seconds=0.0, working_bytes=working)
        return self._predicted[kind]

    def _fit(self) -> LinearModel:
        """Fit seconds to operations and bytes: of the adapters if there are enough, else of blocks too."""
        work = [self._work(kind) for kind in self.adapters]
        seconds = [cost.seconds for cost in self.adapters.values()]
        if len(work) < 8:
            for block, cost in self.blocks.items():
                info = self.space.info(block)
                if info.output is not None and info.input.is_float:
                    work.append(self._work_of(info.flops, info.input, info.output, info.capacity))
                    seconds.append(cost.seconds)
        return fit_linear(work, seconds)

    def _work(self, kind: AdapterKind) -> tuple[float, float]:
        has_map = kind.source == kind.target or None
        return self._work_of(adapter_flops(*kind, has_map=has_map), *kind, adapter_capacity(*kind, has_map=has_map))

    def _work_of(self, count: int, source: Feature, target: Feature, capacity: int) -> tuple[float, float]:
        batch = self.conditions.batch_size
        moved = batch * (math.prod(source.shape) + math.prod(target.shape)) + capacity
        return float(count * batch), float(moved * _bytes_per_item(self.conditions.dtype))


def _all_blocks(space: Space) -> list[BlockId]:
    return [BlockId(task, op) for task, infos in enumerate(space.blocks) for op in range(len(infos))]


def _bytes_per_item(dtype: str) -> int:
    digits = "".join(character for character in dtype if character.isdigit())
    return max(1, int(digits or 32) // 8)


def _peak(graph: Graph, table: CostTable) -> int:
    """Return the largest sum of bytes of values that wait for a step, and of what is alive within the running one."""
    space, facts, batch = graph.space, graph.facts(), table.conditions.batch_size

    def size(feature: Feature | None) -> int:
        return 0 if feature is None else math.prod(feature.shape) * batch * _bytes_per_item(feature.dtype)

    takers: dict[BlockId | AdapterId | None, int] = {}
    for node in [edge.adapter or edge.source for _, edge in graph.edges] + [entry.source for entry in graph.adapters()]:
        takers[node] = takers.get(node, 0) + 1
    held: dict[BlockId | AdapterId | None, int] = {None: 0}  # the inputs belong to the caller
    peak = 0

    def run(node: BlockId | AdapterId, source: BlockId | AdapterId | None, working: int, output: int) -> None:
        nonlocal peak
        peak = max(peak, sum(held.values()) + working)
        takers[source] -= 1
        if takers[source] == 0 and source is not None:
            del held[source]
        if takers.get(node):
            held[node] = output

    for block in facts.order:
        edge, info = facts.edges[block], space.info(block)
        if edge.adapter is not None and edge.adapter not in held:
            run(edge.adapter, edge.source, table.adapter(edge.adapter).working_bytes, size(info.input))
        run(block, edge.adapter or edge.source, table.blocks[block].working_bytes, size(info.output))
    return peak
