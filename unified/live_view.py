"""What a command shows over a terminal while it works: drawn anew again and again, and gone when it is done."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live


class LiveView(ABC):
    """A context manager that shows :meth:`drawn` while it is open, and leaves nothing behind.

    Args:
        console: A terminal.
        by_itself: Draw four times a second; else when :meth:`redraw` is called, for what a thread would disturb.
    """

    def __init__(self, console: Console, *, by_itself: bool = True) -> None:
        self._begin = time.monotonic()
        self._live = Live(
            console=console, get_renderable=self.drawn, auto_refresh=by_itself, refresh_per_second=4, transient=True
        )

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the view away."""
        self._live.stop()

    @property
    def seconds(self) -> float:
        """How long it has been open."""
        return time.monotonic() - self._begin

    def redraw(self) -> None:
        """Draw now."""
        self._live.refresh()

    @abstractmethod
    def drawn(self) -> RenderableType:
        """Return what is shown now."""
