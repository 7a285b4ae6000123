"""What a user did wrong, in words."""

from __future__ import annotations


class ServingError(ValueError):
    """Something handed in cannot be used; the message says what was expected, what came, whose it is and what to do."""


class DuplicateVariantError(ServingError):
    """A variant is in the store already, or another of its name is; ``variant`` is the id of that one."""

    def __init__(self, message: str, variant: str) -> None:
        super().__init__(message)
        self.variant = variant
