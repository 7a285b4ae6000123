"""How a layer is run whose neurons may not all read the same: one operator for each group, or a single one with zeros between.

*Grouped* does the operations that :func:`~fusion.merging.flops.flops` counts and no more; *dense* does more of them in one go,
which may take less time where layers are small. Both give the same values, so that measured time may choose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fusion.merging.layers import Kind
from fusion.merging.merged import Part, Step, conv_arguments, edges
from fusion.timer import time_interleaved

GROUPED, DENSE = "grouped", "dense"
MAX_SECONDS, PRECISION = 0.05, 0.02  # of measuring, for each layer, and when the medians are known well enough
MARGIN = 0.95  # what dense must gain before it is taken: it does more operations


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Piece:
    """One operator of a layer.

    Attributes:
        rows: int64, the neurons that it makes, by their place among the layer's.
        columns: int64, the neurons that it reads, by their place in the feature that it is given.
    """

    rows: Tensor
    columns: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Maker:
    """A layer that makes neurons, cut down to those that some tasks need.

    Attributes:
        step: What it does.
        part: Its tensors, for all tasks.
        rows: Row of its tensors of each neuron that it makes.
        columns: Column of its weight of each neuron that it is given.
        row_groups: Bits of the tasks of each neuron that it makes.
        column_groups: The same of each that it is given.
        positions: Values in a row of the given feature for each neuron: more than 1 for a linear layer after flattening.
        share: Whether its weights are to be views of the tensors, where that can be.
    """

    step: Step
    part: Part
    rows: Tensor
    columns: Tensor
    row_groups: Tensor
    column_groups: Tensor
    positions: int
    share: bool

    def pieces(self, lowering: str) -> tuple[Piece, ...]:
        """Return its operators; one in either lowering if all its neurons read the same."""
        mask = edges(self.row_groups, self.column_groups)
        if lowering == DENSE:
            return (_piece(torch.arange(len(mask)), mask.any(0)),)
        rows_by_pattern: dict[tuple[bool, ...], list[int]] = {}
        for row, pattern in enumerate(mask.tolist()):
            rows_by_pattern.setdefault(tuple(pattern), []).append(row)
        return tuple(_piece(torch.tensor(rows), torch.tensor(pattern)) for pattern, rows in rows_by_pattern.items())

    def module(self, piece: Piece) -> nn.Module:
        """Return one of its operators."""
        assert self.part.weight is not None
        weight = take(self.part.weight.detach(), self.rows[piece.rows], 0)
        weight = take(weight, spread(self.columns[piece.columns], self._spread), 1)
        mask = edges(self.row_groups[piece.rows], self.column_groups[piece.columns])
        if not mask.all():
            mask = mask.repeat_interleave(self._spread, 1).view(*mask.shape[:1], -1, *[1] * (weight.ndim - 2))
            weight = weight * mask.to(weight)
        bias = None if self.part.bias is None else take(self.part.bias.detach(), self.rows[piece.rows], 0)
        return weighted(plain(self.step, weight, bias), self.part, weight, bias, share=self.share)

    @property
    def _spread(self) -> int:
        return self.positions if self.step.kind is Kind.LINEAR else 1


def plain(step: Step, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a layer of torch's for weights of this shape, without values yet and without touching the random state."""
    if step.kind is Kind.LINEAR:
        return nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    arguments: list[Any] = [value if isinstance(value, str) else tuple(value) for value in conv_arguments(step)]
    stride, padding, dilation = arguments
    groups = len(weight) if step.kind is Kind.DEPTHWISE else 1
    height, width = weight.shape[2:]
    return nn.Conv2d(
        weight.shape[1] * groups, weight.shape[0], (height, width), stride, padding, dilation, groups,
        bias=bias is not None, device="meta",
    )  # fmt: skip


def weighted(module: nn.Module, part: Part, weight: Tensor | None, bias: Tensor | None, *, share: bool) -> nn.Module:
    """Put values into a layer of torch's; they require gradients as the part's do."""
    for name, value, own in (("weight", weight, part.weight), ("bias", bias, part.bias)):
        if value is not None and own is not None:
            kept = value if share else value.clone(memory_format=torch.contiguous_format)
            module.register_parameter(name, nn.Parameter(kept, requires_grad=own.requires_grad))
    return module


def emit(graph: fx.Graph, root: dict[str, nn.Module | Tensor], maker: Maker, given: fx.Node, lowering: str) -> fx.Node:
    """Add a layer to a graph.

    Args:
        graph: Grows by the layer's operators.
        root: By name what the graph's operators need; grows.
        maker: The layer.
        given: The feature that it reads.
        lowering: ``grouped`` or ``dense``.

    Returns:
        Its feature, the neurons in their order.
    """
    pieces, name = maker.pieces(lowering), attribute(maker.step.name)
    made = []
    for number, piece in enumerate(pieces):
        own = name if len(pieces) == 1 else f"{name}.{number}"
        root[own] = maker.module(piece)
        index = spread(piece.columns, maker.positions)
        width = len(maker.columns) * maker.positions
        made.append(graph.call_module(own, (select(graph, root, f"{name}_columns{number}", given, index, width),)))
    if len(made) == 1:
        return made[0]
    order = torch.cat([piece.rows for piece in pieces])
    joined = graph.call_function(torch.cat, (made, 1))
    return select(graph, root, f"{name}_rows", joined, order.argsort(), len(order))


def select(
    graph: fx.Graph, root: dict[str, nn.Module | Tensor], name: str, given: fx.Node, index: Tensor, width: int
) -> fx.Node:
    """Add what takes some channels of a feature of ``width``: nothing for all of them, a view for a run."""
    run = _run(index)
    if run is None:
        root[name] = index
        return graph.call_function(torch.index_select, (given, 1, graph.get_attr(name)))
    if run == (0, width):
        return given
    return graph.call_function(torch.narrow, (given, 1, *run))


def take(tensor: Tensor, index: Tensor, dim: int) -> Tensor:
    """Return some rows or columns; a view if they are a run."""
    run = _run(index)
    return tensor.index_select(dim, index.to(tensor.device)) if run is None else tensor.narrow(dim, *run)


def spread(index: Tensor, positions: int) -> Tensor:
    """Return the places of the values of neurons, where each has several side by side."""
    return index if positions == 1 else (index[:, None] * positions + torch.arange(positions)).flatten()


def attribute(name: str) -> str:
    """Return a step's name as a path of attributes."""
    return "".join(letter if letter.isalnum() or letter in "._" else "_" for letter in name)


def faster(layers: Sequence[tuple[Maker, Tensor]]) -> list[str]:
    """Return for each layer, given with a feature for it, which lowering takes less time; all are measured in turns.

    What else runs on the machine only ever adds time, so that the quiet runs of either repeat better than their median.
    """
    if not layers:
        return []
    runs = [_runner(maker, lowering, feature) for maker, feature in layers for lowering in (GROUPED, DENSE)]
    timings = time_interleaved(runs, max_seconds=MAX_SECONDS * len(layers), precision=PRECISION, device=layers[0][1].device)
    return [
        DENSE if by_zeros.quiet_seconds < MARGIN * by_group.quiet_seconds else GROUPED
        for by_group, by_zeros in zip(timings[::2], timings[1::2], strict=True)
    ]


def _runner(maker: Maker, lowering: str, feature: Tensor) -> Callable[[], object]:
    graph, root = fx.Graph(), dict[str, nn.Module | Tensor]()
    graph.output(emit(graph, root, maker, graph.placeholder("input"), lowering))
    module = module_of(root, graph, feature.device)
    return lambda: module(feature)


def module_of(root: Mapping[str, nn.Module | Tensor], graph: fx.Graph, device: torch.device) -> fx.GraphModule:
    """Return a graph as a module in evaluation mode."""
    return fx.GraphModule(dict(root), graph, "SpecializedNetwork").to(device).eval()


def _piece(rows: Tensor, reads: Tensor) -> Piece:
    columns = reads.nonzero().flatten()
    # neurons that may read nothing have their bias for value: the first column, at zero, gives them the feature's size
    return Piece(rows=rows, columns=columns if len(columns) else torch.zeros(1, dtype=torch.int64))


def _run(index: Tensor) -> tuple[int, int] | None:
    """Return start and length if places follow one another."""
    wanted: Sequence[int] = index.tolist()
    is_run = len(wanted) > 0 and wanted == list(range(wanted[0], wanted[0] + len(wanted)))
    return (wanted[0], len(wanted)) if is_run else None
