"""How many members to stack at a time: found by timing real steps, so that nothing is lost by looking."""

from __future__ import annotations

from statistics import median

WARM = 1  #: steps after a change of width that are not timed
STEPS = 3  #: timed steps of every width
FINAL_STEPS = 6  #: further ones of the two best
MARGIN = 0.98  #: of the wider one's time must a narrower one take at most, to be preferred


def widths(num_members: int) -> list[int]:
    """Return the widths worth trying: all members at once, and so on by halves down to two or three.

    >>> widths(12), widths(16)
    ([12, 6, 3], [16, 8, 4, 2])
    """
    found = [num_members]
    while found[-1] > 3:
        found.append(-(-found[-1] // 2))
    return found


class WidthSearch:
    """Says which width the next step is to have, and takes its time, until the best is known.

    Every width gets a few steps, then the two best a few more: a busy machine may have slowed one of them.

    Args:
        num_members: How many members there are.

    Example:
        >>> search = WidthSearch(8)
        >>> while not search.is_over:
        ...     search.note({8: 2.0, 4: 1.0, 2: 1.5}[search.width])
        >>> search.width
        4
    """

    def __init__(self, num_members: int) -> None:
        self._plan = [width for width in widths(num_members) for _ in range(WARM + STEPS)]
        self._is_final = len(widths(num_members)) == 1
        self._at = 0
        self._times: dict[int, list[float]] = {}

    @property
    def is_over(self) -> bool:
        """Whether the best width is known."""
        return self._is_final and (self._at >= len(self._plan) or len(set(self._plan)) == 1)

    @property
    def width(self) -> int:
        """The width of the next step; once it is over, the best."""
        return self._best()[0] if self.is_over else self._plan[self._at]

    @property
    def seconds(self) -> dict[int, float]:
        """Median seconds of a step by width."""
        return {width: median(times) for width, times in self._times.items()}

    def note(self, seconds: float) -> None:
        """Take note of how long the step took."""
        width = self._plan[self._at]
        if self._at >= WARM and self._plan[self._at - WARM] == width:
            self._times.setdefault(width, []).append(seconds)
        self._at += 1
        if self._at == len(self._plan) and not self._is_final:
            self._plan += [width for width in self._best()[:2] for _ in range(WARM + FINAL_STEPS)]
            self._is_final = True

    def _best(self) -> list[int]:
        """Return the widths, the fastest first; of nearly equal ones the wider."""
        if not self._times:
            return self._plan[:1]
        wide_first = sorted(self.seconds.items(), reverse=True)
        best = wide_first[0]
        for width, seconds in wide_first[1:]:
            if seconds < MARGIN * best[1]:
                best = width, seconds
        rest = sorted((seconds, width) for width, seconds in wide_first if width != best[0])
        return [best[0], *(width for _, width in rest)]
