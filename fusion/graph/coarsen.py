"""Join fine segments to blocks: light ones to the heavy one before, then whole levels of modules (design 3.1, step 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from torch import Tensor, fx

from fusion.graph import operators
from fusion.graph.cuts import Analysis
from fusion.graph.operators import packet

_MIN_BLOCKS = 8  # a level is joined whole only if so many blocks are left, else in groups of neighbours

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Neighbouring main nodes between two cuts, and the module that they come from."""

    nodes: tuple[fx.Node, ...]
    path: Path

    @property
    def is_heavy(self) -> bool:
        """Whether it has an operator worth a block of its own."""
        return any(packet(node) in operators.HEAVY for node in self.nodes)

    @property
    def name(self) -> str:
        """Path of the module."""
        return ".".join(self.path)


def segments(analysis: Analysis, cuts: Sequence[fx.Node]) -> list[Segment]:
    """Return the main nodes in order, split behind each of ``cuts``."""
    position = {node: index for index, node in enumerate(analysis.order)}
    ends = sorted({position[cut] + 1 for cut in cuts} | {len(analysis.order)})
    return [_segment(analysis.order[start:end]) for start, end in pairwise([0, *ends])]


def coarsen(fine: Sequence[Segment], max_blocks: int) -> list[Segment]:
    """Join neighbours until each segment is heavy and there are at most ``max_blocks``.

    Levels of the module tree are joined from the deepest up. A level is joined in equal groups of neighbours, all of it or
    nothing, so that equal layers end as equal blocks.
    """
    found = _join_light(fine)
    depth = max((len(segment.path) for segment in found), default=0)
    while len(found) > max_blocks and depth > 0:
        found = _join_level(found, depth, max_blocks)
        depth -= 1
    if len(found) > max_blocks:
        found = _join_even(found, max_blocks)
    return found


def op_type(nodes: Sequence[fx.Node]) -> str:
    """Return the heaviest kind of operator: attention and recurrence before conv and linear, by multiplications."""
    kinds = [packet(node) for node in nodes]
    num_products = sum(kind in operators.PRODUCT and not _has_parameter(node) for kind, node in zip(kinds, nodes, strict=True))
    if any(kind in operators.ATTENTION for kind in kinds) or (num_products >= 2 and any("softmax" in kind for kind in kinds)):
        return "attention"
    if any(kind in operators.RECURRENT for kind in kinds):
        return "recurrent"
    convs = sum(work(node) for node in nodes if packet(node) in operators.CONV)
    linears = sum(work(node) for node in nodes if packet(node) in operators.LINEAR | operators.PRODUCT)
    if convs or linears:
        return "conv" if convs >= linears else "linear"
    if any(kind in operators.EMBEDDING for kind in kinds):
        return "embedding"
    return "norm" if any(kind in operators.NORM for kind in kinds) else "other"


def work(node: fx.Node) -> float:
    """Return about how many multiplications an operator makes for one sample; 0 for one that is not heavy."""
    value = node.meta.get("val")
    value = value[0] if isinstance(value, tuple | list) else value
    if packet(node) not in operators.HEAVY - operators.EMBEDDING or not isinstance(value, Tensor):
        return 0.0
    size = _numel(value.shape)
    weights = [source.meta["val"] for source in node.all_input_nodes if source.op == "get_attr"]
    matrices = [weight for weight in weights if weight.ndim > 1]
    if packet(node) in operators.RECURRENT:
        return float(_numel(value.shape[:-1]) * sum(_numel(weight.shape) for weight in matrices))
    if matrices:
        return float(size * _numel(matrices[0].shape[1:]))
    operands = [source.meta.get("val") for source in node.all_input_nodes]
    inner = [_numel(operand.shape[-1:]) for operand in operands if isinstance(operand, Tensor)]
    if packet(node) in operators.ATTENTION and len(inner) > 1 and isinstance(operands[1], Tensor):
        return float(2 * size * _numel(operands[1].shape[-2:-1]))
    return float(size * inner[0]) if inner else 0.0


def _join_light(fine: Sequence[Segment]) -> list[Segment]:
    found: list[Segment] = []
    for segment in fine:
        if found and not (segment.is_heavy and found[-1].is_heavy):
            found[-1] = _joined([found[-1], segment])
        else:
            found.append(segment)
    return found


def _join_level(found: list[Segment], depth: int, max_blocks: int) -> list[Segment]:
    """Join what lies under one parent at ``depth``, in the smallest equal groups that suffice."""

    def parent(segment: Segment) -> Path:
        return segment.path[: depth - 1] if len(segment.path) >= depth else segment.path

    groups = [list(group) for _, group in groupby(found, key=parent)]
    if len(groups) >= min(_MIN_BLOCKS, max_blocks):
        return [_joined(group) for group in groups]
    for size in range(2, max(map(len, groups)) + 1):
        joined = [_joined(group[start : start + size]) for group in groups for start in range(0, len(group), size)]
        if len(joined) <= max_blocks:
            return joined
    return [_joined(group) for group in groups]


def _join_even(found: list[Segment], max_blocks: int) -> list[Segment]:
    size = -(-len(found) // max_blocks)
    return [_joined(found[start : start + size]) for start in range(0, len(found), size)]


def _segment(nodes: Sequence[fx.Node]) -> Segment:
    heavy = [node for node in nodes if packet(node) in operators.HEAVY] or list(nodes)
    return Segment(nodes=tuple(nodes), path=_common([path for path in map(_path, heavy) if path] or [()]))


def _path(node: fx.Node) -> Path:
    """Return the path of the module that a node comes from; if the graph does not know it, that of its first tensor."""
    known = node.meta.get("path", "")
    if not known:
        owners = [str(source.target).rpartition(".")[0] for source in node.all_input_nodes if source.op == "get_attr"]
        known = next(iter(owners), "")
    return tuple(known.split(".")) if known else ()


def _joined(group: Sequence[Segment]) -> Segment:
    if len(group) == 1:
        return group[0]
    heavy = [segment for segment in group if segment.is_heavy] or list(group)
    return Segment(nodes=tuple(node for segment in group for node in segment.nodes), path=_common([s.path for s in heavy]))


def _common(paths: Sequence[Path]) -> Path:
    shared = paths[0]
    for path in paths[1:]:
        equal = [left == right for left, right in zip(shared, path, strict=False)]
        shared = shared[: equal.index(False) if False in equal else len(equal)]
    return shared


def _has_parameter(node: fx.Node) -> bool:
    return any(source.op == "get_attr" for source in node.all_input_nodes)


def _numel(sizes: Sequence[object]) -> int:
    product = 1
    for size in sizes:
        product *= size if isinstance(size, int) else 1
    return product
