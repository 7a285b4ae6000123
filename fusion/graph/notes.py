"""What the user of a captured model should know (design 3.6)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn

from fusion.graph.coarsen import work
from fusion.graph.cuts import Analysis
from fusion.graph.extract import Span

_FEW_CUTS = 3
_LARGE_SHARE = 0.6
_MOST_FOLDED = 3  # where one does, all that come behind it do


def notes_on(analysis: Analysis, spans: Sequence[Span], names: Sequence[str], spare: nn.Module, label: str) -> list[str]:
    """Return what there is to say about the blocks of a model.

    Args:
        analysis: The evaluation graph.
        spans: What the blocks cover.
        names: Names of the blocks.
        spare: What the model has but does not use.
        label: Name of the model.
    """
    found = [_few(analysis, spans, names, label)]
    found += [f"value {name} folds the batch into other dimensions; not shareable" for name in analysis.folded[:_MOST_FOLDED]]
    unused = [name for name, _ in spare.named_parameters()]
    if unused:
        found.append(f"model '{label}' does not use its parameters {_listed(unused)}")
    return [note for note in found if note]


def _few(analysis: Analysis, spans: Sequence[Span], names: Sequence[str], label: str) -> str:
    amounts = [sum(work(node) for node in span.nodes) for span in spans]
    total = sum(amounts)
    largest = max(range(len(spans)), key=lambda index: amounts[index])
    share = amounts[largest] / total if total else 0.0
    if len(spans) > _FEW_CUTS and share <= _LARGE_SHARE:
        return ""
    alive = _listed(_staying_alive(analysis, spans[largest]))
    return (
        f"model '{label}': only {len(spans) - 1} shareable boundaries (largest block {100 * share:.0f}% of FLOPs: "
        f"{names[largest] or f'number {largest}'})" + (f" because values {alive} stay alive" if alive else "")
    )


def _staying_alive(analysis: Analysis, span: Span) -> list[str]:
    """Return the values that are used longest after a block takes or makes them, by the modules that make them."""
    position = {node: index for index, node in enumerate(analysis.order)}

    def duration(node: fx.Node) -> int:
        return analysis.last_use.get(node, 0) - position[node]

    values = [node for node in (span.source, *span.nodes) if node in position]
    longest = sorted(values, key=duration, reverse=True)[:3]
    return [f"{node.meta.get('path') or 'forward'}.{node.name}" for node in longest if duration(node) > 1]


def _listed(names: Sequence[str], limit: int = 5) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
