"""The targets C1-C7 of the design, judged by what was measured, and the table of families."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.fusion_coverage_checks import FILED, TRAINED
from benchmarks.fusion_coverage_rows import TOLERANCE, Row
from benchmarks.fusion_zoo_libraries import SURVEYED

if TYPE_CHECKING:
    from benchmarks.fusion_coverage import Findings

NUM_CORE = 52
NUM_REFUSED = 2
MIN_BLOCKS = 4
LARGE_SHARE = 0.6
TRAIN_TOLERANCE = 1e-7
_COMPARE = {">=": operator.ge, "<=": operator.le, "=": operator.eq}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A measure with its bound.

    Attributes:
        id: ``C1`` to ``C7``; with ``+`` for the models beyond the core.
        measure: What is measured.
        value: None if it was not.
        op: ``>=``, ``<=`` or ``=``.
        bound: The number it is compared with.
    """

    id: str
    measure: str
    value: float | None
    op: str
    bound: float

    @property
    def verdict(self) -> str:
        """``PASS``, ``FAIL`` or ``NOT-RUN``."""
        if self.value is None:
            return "NOT-RUN"
        return "PASS" if _COMPARE[self.op](self.value, self.bound) else "FAIL"

    @property
    def line(self) -> str:
        """The target as it is printed."""
        value = "-" if self.value is None else f"{self.value:.3g}"
        return f"{self.id} {self.measure}={value} target{self.op}{self.bound:g} {self.verdict}"


def targets(found: Findings) -> list[Target]:
    """Return every target, in order."""
    core = [row for row in found.rows if row.is_core]
    further = [row for row in found.rows if not row.is_core]
    is_whole = not found.is_quick and len(core) == NUM_CORE and all(row.outcome != "not-run" for row in core)
    is_wider = not found.is_quick and bool(further) and all(row.outcome != "not-run" for row in further)
    return [
        *_captured("C1", core, is_whole=is_whole, least=NUM_CORE - NUM_REFUSED),
        Target(
            id="C1",
            measure="refused_with_place",
            value=sum(row.outcome == "refused" and row.is_expected for row in core) if is_whole else None,
            op=">=",
            bound=NUM_REFUSED,
        ),
        *(_captured("C1+", further, is_whole=is_wider, least=len(further)) if further else ()),
        *_surveyed(core),
        *_sound("C3", core),
        *(_sound("C3+", further) if further else ()),
        *_trained(found),
        *_trained_alike(found.rows),
        Target(
            id="C5",
            measure="boundaries_bitwise",
            value=None if found.boundaries is None else sum(found.boundaries),
            op=">=",
            bound=9,
        ),
        *_filed(found),
        *_divided("C7", core, is_whole=is_whole, least=48, most=7),
    ]


def family_table(rows: Sequence[Row]) -> str:
    """Return the rows summed by family, as text."""
    lines = [("family", "models", "captured", "cuts", "blocks", "largest block", "largest difference")]
    for is_core in (True, False):
        chosen = [row for row in rows if row.is_core is is_core and row.outcome != "not-run"]
        for family in dict.fromkeys(row.family for row in chosen):
            lines.append(_family_line(f"{family}{'' if is_core else ' +'}", [row for row in chosen if row.family == family]))
        if chosen:
            lines.append(_family_line("total" if is_core else "total +", chosen))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _family_line(name: str, rows: Sequence[Row]) -> tuple[str, ...]:
    kept = [row for row in rows if row.outcome == "captured"]
    return (
        name,
        str(len(rows)),
        str(len(kept)),
        _range(row.cuts for row in kept),
        _range(row.blocks for row in kept),
        _range(row.largest_share for row in kept),
        f"{max((row.worst or 0.0 for row in kept), default=0.0):.2g}",
    )


def _range(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    if all(isinstance(value, int) for value in known):
        return f"{min(known)}-{max(known)}"
    return f"{min(known):.2f}-{max(known):.2f}"


def _captured(name: str, rows: Sequence[Row], *, is_whole: bool, least: int) -> Iterator[Target]:
    kept = [row for row in rows if row.outcome == "captured"]
    seen = [row for row in rows if row.outcome in ("captured", "wrong")]
    worst = max((row.worst or 0.0 for row in seen), default=None)
    wrong = sum(row.outcome == "wrong" for row in rows) if rows else None
    yield Target(id=name, measure="captured", value=len(kept) if is_whole else None, op=">=", bound=least)
    yield Target(id=name, measure="silently_wrong", value=wrong, op="<=", bound=0)
    yield Target(id=name, measure="max_abs_difference", value=worst, op="<=", bound=TOLERANCE)
    bitwise = sum(row.is_bitwise for row in kept) if is_whole else None
    single = sum((row.difference_single or 0.0) <= TOLERANCE for row in kept)
    yield Target(id=name, measure="batch_of_one_equal", value=single if kept else None, op=">=", bound=len(kept))
    yield Target(id=name, measure="bitwise", value=bitwise, op=">=", bound=least - 1)


def _surveyed(rows: Sequence[Row]) -> Iterator[Target]:
    chosen = [row for row in rows if row.name in SURVEYED and row.outcome != "not-run"]
    is_whole = len(chosen) == len(SURVEYED)
    equal = sum(row.outcome == "captured" for row in chosen)
    wrong = sum(row.outcome == "wrong" for row in chosen)
    yield Target(id="C2", measure="accepted_equal", value=equal if is_whole else None, op=">=", bound=17)
    yield Target(id="C2", measure="silently_wrong", value=wrong if chosen else None, op="<=", bound=0)


def _sound(name: str, rows: Sequence[Row]) -> Iterator[Target]:
    kept = [row for row in rows if row.parameters_identical is not None]
    share = sum(bool(row.parameters_identical) for row in kept) / len(kept) if kept else None
    doubled = sum(row.duplicated_heavy or 0 for row in kept) if kept else None
    flops = sum(abs(row.flops_difference or 0) for row in kept) if kept else None
    yield Target(id=name, measure="parameters_identical_share", value=share, op=">=", bound=1)
    yield Target(id=name, measure="duplicated_heavy_closures", value=doubled, op="<=", bound=0)
    writing = sum(row.writing_blocks or 0 for row in kept) if kept else None
    yield Target(id=name, measure="blocks_writing_their_input", value=writing, op="<=", bound=0)
    yield Target(id=name, measure="flops_sum_difference", value=flops, op="<=", bound=0)


def _trained(found: Findings) -> Iterator[Target]:
    is_whole = len(found.training) == len(TRAINED) or (found.is_quick and found.training)
    worst = max((check.difference for check in found.training), default=0.0) if is_whole else None
    stale = sum(check.stale_buffers for check in found.training) if is_whole else None
    yield Target(id="C4", measure="train_step_max_difference", value=worst, op="<=", bound=0)
    yield Target(id="C4", measure="stale_buffers", value=stale, op="<=", bound=0)


def _trained_alike(rows: Sequence[Row]) -> Iterator[Target]:
    """One forward and backward pass of every model; gradients of a table that several blocks look up may be added otherwise."""
    kept = [row for row in rows if row.is_for_training]
    alike = sum((row.train_difference or 0.0) <= TRAIN_TOLERANCE and not row.stale_buffers for row in kept)
    yield Target(id="C4+", measure="trained_alike", value=alike if kept else None, op=">=", bound=len(kept))


def _filed(found: Findings) -> Iterator[Target]:
    exported = None if found.tree is None else found.tree.export_difference
    onnx = None if found.tree is None else found.tree.onnx_difference
    is_whole = len(found.files) == 2 * len(FILED) or (found.is_quick and found.files)
    worst = max((check.difference for check in found.files), default=0.0) if is_whole else None
    yield Target(id="C6", measure="export_difference", value=exported, op="<=", bound=0)
    yield Target(id="C6", measure="onnx_difference", value=onnx, op="<=", bound=TOLERANCE)
    yield Target(id="C6", measure="pt2_difference", value=worst, op="<=", bound=0)


def _divided(name: str, rows: Sequence[Row], *, is_whole: bool, least: int, most: int) -> Iterator[Target]:
    kept = [row for row in rows if row.outcome == "captured"]
    fine = sum((row.blocks or 0) >= MIN_BLOCKS for row in kept)
    coarse = sum((row.largest_share or 0.0) > LARGE_SHARE for row in kept)
    yield Target(id=name, measure="models_with_4_blocks", value=fine if is_whole else None, op=">=", bound=least)
    yield Target(id=name, measure="models_with_block_over_60pct", value=coarse if is_whole else None, op="<=", bound=most)
