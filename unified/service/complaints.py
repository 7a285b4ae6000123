"""Says what goes wrong again and again once, and once more when it is over: a full disk would only become fuller."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


class Complaints:
    """Remembers what was said last about each thing that may fail."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def failed(self, what: str, error: Exception) -> None:
        """Log that ``what`` failed, unless that was said last."""
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if self._said.get(what) != text:
            logger.error("%s failed, and will be tried again: %s", what, text, exc_info=error)
        self._said[what] = text

    def succeeded(self, what: str) -> None:
        """Log that ``what`` works again, if it did not."""
        if self._said.pop(what, None) is not None:
            logger.warning("%s works again", what)
