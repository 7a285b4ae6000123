"""Which columns of a table a screen has room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

GAP = 2  #: between two columns


def natural(titles: Sequence[str], lines: Sequence[Mapping[str, Text]]) -> dict[str, int]:
    """Return how wide each column would have to be for its title and all its cells.

    Args:
        titles: The columns, in their order.
        lines: The cells of each line, by the column's title.
    """
    return {title: max([len(title), *(line[title].cell_len for line in lines)]) for title in titles}


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
