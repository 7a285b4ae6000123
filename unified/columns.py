"""Which columns of a table a screen has room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

GAP = 2  #: between two columns


def fitting(widths: Mapping[str, int], room: int, leave_out_first: Sequence[str]) -> list[str]:
    """Return the columns to show, in their order: those of ``leave_out_first`` go, one by one, until the others fit.

    >>> fitting({"job": 10, "peak": 8, "loss": 6}, 20, ["peak", "loss"])
    ['job', 'loss']
    """
    left = dict(widths)
    for title in leave_out_first:
        if total(left) <= room:
            break
        left.pop(title, None)
    return list(left)


def total(widths: Mapping[str, int]) -> int:
    """Return the width of a table."""
    return sum(widths.values()) + GAP * len(widths)
