"""Writing to people: a console as wide as it should be, and lines that nobody need read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Generic, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Event = TypeVar("Event")
FILE_WIDTH = 160  #: columns of a table that goes to a file or a pipe


def line_writer(stream: TextIO) -> Callable[[str], None]:
    """Return a function that writes a line to ``stream``, at once, until nobody reads it any more."""
    is_read = True

    def write(line: str) -> None:
        nonlocal is_read
        if not is_read:
            return
        try:
            stream.write(line + "\n")
            stream.flush()
        except BrokenPipeError:
            is_read = False

    return write


class LineView(Generic[Event]):
    """Writes lines for each event; a view like a live one, which leaves what it has written.

    Args:
        stream: Where to, flushed after each line.
        spell: Returns the lines of an event.
    """

    def __init__(self, stream: TextIO, spell: Callable[[Event], Iterable[str]]) -> None:
        self._write, self._spell = line_writer(stream), spell

    def __enter__(self) -> Callable[[Event], None]:
        """Return what writes the lines."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave what was written."""

    def __call__(self, event: Event) -> None:
        """Write the lines of ``event``."""
        for line in self._spell(event):
            self._write(line)


def can_redraw(console: Console) -> bool:
    """Return whether what was written on stdout can be drawn over: it is a terminal that is able to."""
    return sys.stdout.isatty() and not console.is_dumb_terminal


def make_console() -> Console:
    """Return a console on stdout: as wide as the terminal, wide enough for any table elsewhere."""
    from rich.console import Console  # only where tables are printed

    is_terminal = sys.stdout.isatty()
    return Console(width=None if is_terminal else FILE_WIDTH, highlight=False)


def show(console: Console, content: RenderableType) -> None:
    """Print ``content``; nobody reading is no error, as the results are on disk."""
    with console.capture() as captured:
        console.print(content)
    lines = (line.rstrip() for line in captured.get().splitlines())
    line_writer(sys.stdout)("\n".join(lines))
