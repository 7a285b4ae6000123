"""What a user did wrong, in words."""

from __future__ import annotations


class ServingError(ValueError):
    """Something handed in cannot be used; the message says what was expected, what came, whose it is and what to do."""
