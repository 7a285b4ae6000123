"""Fill a cost table: run the models once, stage by stage, and the adapters between their features (R1 of the design)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusion.graph.errors import FusionError
from fusion.graph.feature import can_rescale
from fusion.graph.rescale import Rescale
from fusion.graph.tree import FusedTree, Step
from fusion.search.absgraph import Space
from fusion.search.build import block_name
from fusion.search.flops import blocks_of
from fusion.search.mutation import Sharing, may_share
from fusion.search.space import BlockId
from fusion.search.table import AdapterKind, Conditions, Cost, CostTable
from fusion.search.working_memory import working_bytes
from fusion.timer import Marks, StagedRun, Timing, evaluating, recorder_for, time_stages, work_clock

if TYPE_CHECKING:
    from fusion.graph.block import BlockSequence

BLOCKS_SHARE = 0.5  # of the time
CHUNK = 8  # adapters that take turns
ADAPTER_PRECISION = 0.02
LAZY_SECONDS = 0.2


def measure_table(
    space: Space,
    sequences: Sequence[BlockSequence],
    inputs: Sequence[Tensor],
    *,
    batch_size: int,
    max_seconds: float,
    generator: torch.Generator,
    stored: Mapping[str, Any] | None = None,
) -> CostTable:
    """Measure every block in place, then the kinds of adapter that may come up, those between similar features first.

    Args:
        space: Of the models.
        sequences: The models in blocks, on the device to be measured; their modes are as before afterwards.
        inputs: Raw inputs in the order of the signature; samples are repeated if there are less than ``batch_size``.
        batch_size: Samples per run.
        max_seconds: Half of it is for the blocks, which may end earlier. Adapters for which no time is left are predicted
            by a model fitted to the others.
        generator: Of weights and inputs of adapters.
        stored: A table from before as JSON. It is taken as it is if it was measured in the same conditions for the same
            space, and nothing is measured.

    Returns:
        A table that measures nothing more, so that what it says can be repeated after a restart. Where that does not matter,
        attach an :class:`AdapterTimer` to it.

    Raises:
        FusionError: If there are no samples.
    """
    inputs = _batch(inputs, batch_size)
    parameter = next((parameter for sequence in sequences for parameter in sequence.parameters()), inputs[0])
    device = inputs[0].device
    conditions = Conditions(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        num_threads=torch.get_num_threads(),
        dtype=str(parameter.dtype).removeprefix("torch."),
        batch_size=batch_size,
    )
    if stored is not None:
        found = CostTable.from_json(stored)
        if found.conditions == conditions and found.space == space:
            return found
    end = time.monotonic() + max_seconds
    with evaluating(*sequences):
        blocks, step_seconds, original = _measure_blocks(sequences, inputs, max_seconds * BLOCKS_SHARE)
    timer = AdapterTimer(batch_size=batch_size, device=device, generator=generator)
    return CostTable(
        space,
        conditions=conditions,
        blocks=blocks,
        adapters=timer.all(_kinds(space), max_seconds=end - time.monotonic()),
        step_seconds=step_seconds,
        original_seconds=original.quiet_seconds,
    )


def _measure_blocks(
    sequences: Sequence[BlockSequence], inputs: Sequence[Tensor], max_seconds: float
) -> tuple[dict[BlockId, Cost], float, Timing]:
    """Return the cost of each block, what each step costs beside, and the time of the whole.

    All blocks are stages of one run, which is as long as that of the whole: a busy machine interrupts both alike, so that
    their difference is what goes from step to step. What interruptions add to the run is given to the stages in proportion.
    """
    tree = _tree(sequences)

    def whole(marks: Marks) -> None:
        marks.mark()
        tree.run(inputs)
        marks.mark()

    [original, staged] = time_stages(
        [whole, _staged(sequences, inputs)],
        max_seconds=max_seconds,
        min_runs=20,
        recorder=recorder_for(inputs[0].device, work_clock(inputs[0].device)),
    )
    blocks = [BlockId(task, op) for task, sequence in enumerate(sequences) for op in range(len(sequence.blocks))]
    share = staged.total.quiet_seconds / sum(stage.quiet_seconds for stage in staged.stages)
    working = [size for sequence in sequences for size in _working_bytes(sequence, inputs)]
    costs = {
        block: Cost(seconds=stage.quiet_seconds * share, iqr_seconds=stage.iqr_seconds, working_bytes=size)
        for block, stage, size in zip(blocks, staged.stages, working, strict=True)
    }
    return costs, (original.total.quiet_seconds - staged.total.quiet_seconds) / len(blocks), original.total


def _staged(sequences: Sequence[BlockSequence], inputs: Sequence[Tensor]) -> StagedRun:
    models = [[(block, [inputs[position] for position in block.needs]) for block in blocks_of(one)] for one in sequences]
    first = inputs[sequences[0].signature.primary]

    def run(marks: Marks) -> None:
        marks.mark()
        for steps in models:
            value = first
            for block, side in steps:
                value = block(value, *side)
                marks.mark()

    return run


def _tree(sequences: Sequence[BlockSequence]) -> FusedTree:
    """Return the original as a tree over the models' own modules."""
    steps, modules = [], {}
    for task, sequence in enumerate(sequences):
        for op, block in enumerate(blocks_of(sequence)):
            name, last = block_name(BlockId(task, op)), op == len(sequence.blocks) - 1
            source = block_name(BlockId(task, op - 1)) if op else None
            steps.append(Step(name=name, source=source, needs=tuple(block.needs), task=sequence.name if last else None))
            modules[name] = block
    return FusedTree(steps, modules, tasks=[sequence.name for sequence in sequences], signature=sequences[0].signature)


def _working_bytes(sequence: BlockSequence, inputs: Sequence[Tensor]) -> list[int]:
    found = []
    with torch.no_grad():
        value = inputs[sequence.signature.primary]
        for block in blocks_of(sequence):
            value, size = working_bytes(block, [value, *(inputs[position] for position in block.needs)])
            found.append(size)
    return found


class AdapterTimer:
    """Measures kinds of adapter.

    Args:
        batch_size: Samples per run.
        device: Where they run.
        generator: Of their weights and inputs.
    """

    def __init__(self, *, batch_size: int, device: torch.device, generator: torch.Generator) -> None:
        self._batch_size = batch_size
        self._device = device
        self._generator = generator

    def __call__(self, kind: AdapterKind) -> Cost:
        """Measure one kind."""
        return self.all([kind], max_seconds=LAZY_SECONDS)[kind]

    def all(self, kinds: Sequence[AdapterKind], *, max_seconds: float) -> dict[AdapterKind, Cost]:
        """Measure kinds in the given order, as long as there is time; at least the first few."""
        found: dict[AdapterKind, Cost] = {}
        end = time.monotonic() + max_seconds
        chunks = [kinds[first : first + CHUNK] for first in range(0, len(kinds), CHUNK)]
        for number, chunk in enumerate(chunks):
            left = end - time.monotonic()
            if found and left <= 0:
                break
            found |= self._chunk(chunk, max(left, LAZY_SECONDS) / (len(chunks) - number))
        return found

    def _chunk(self, kinds: Sequence[AdapterKind], max_seconds: float) -> dict[AdapterKind, Cost]:
        adapters = [
            Rescale(*kind, generator=self._generator, has_map=kind.source == kind.target or None).to(self._device).eval()
            for kind in kinds
        ]
        inputs = [self._input(kind) for kind in kinds]
        timings = time_stages(
            [_after_fresh_input(adapter, source) for adapter, source in zip(adapters, inputs, strict=True)],
            max_seconds=max_seconds,
            min_runs=20,
            warmup=1,
            precision=ADAPTER_PRECISION,
            recorder=recorder_for(self._device, work_clock(self._device)),
        )
        with torch.no_grad():
            sizes = [working_bytes(adapter, [source])[1] for adapter, source in zip(adapters, inputs, strict=True)]
        return {
            kind: Cost(seconds=timing.total.quiet_seconds, iqr_seconds=timing.total.iqr_seconds, working_bytes=size)
            for kind, timing, size in zip(kinds, timings, sizes, strict=True)
        }

    def _input(self, kind: AdapterKind) -> Tensor:
        values = torch.randn(self._batch_size, *kind.source.shape, generator=self._generator)
        return values.to(device=self._device, dtype=getattr(torch, kind.source.dtype))


def _after_fresh_input(adapter: Rescale, source: Tensor) -> StagedRun:
    def run(marks: Marks) -> None:
        fresh = source.clone()  # in the caches, as what a block has just made
        marks.mark()
        adapter(fresh)
        marks.mark()

    return run


def _kinds(space: Space) -> list[AdapterKind]:
    """Return the kinds of adapter that graphs of a space can have, those that ``partial`` sharing makes first."""
    targets = dict.fromkeys(info.input for infos in space.blocks for info in infos)
    sources = dict.fromkeys([space.root, *(info.output for infos in space.blocks for info in infos if info.output is not None)])
    stitched = {info.input for infos in space.blocks for info in infos if info.stitched}
    kinds = [
        AdapterKind(source, target)
        for source in sources
        for target in targets
        if (source != target or source in stitched) and source.is_float and target.is_float and can_rescale(source, target)
    ]

    def rank(kind: AdapterKind) -> tuple[bool, float]:
        is_near = may_share(kind.source, kind.target, Sharing.PARTIAL)
        ratio = math.prod(kind.target.shape) / math.prod(kind.source.shape)
        return not is_near, abs(math.log(ratio))

    return sorted(kinds, key=rank)


def _batch(inputs: Sequence[Tensor], batch_size: int) -> tuple[Tensor, ...]:
    if not inputs or not len(inputs[0]):
        raise FusionError("expected at least one sample to measure with, got none")
    return tuple(tensor[torch.arange(batch_size, device=tensor.device) % len(tensor)] for tensor in inputs)
