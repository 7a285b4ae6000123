"""Settings of a merge from what a caller or the command line gives."""

from __future__ import annotations

from typing import Any

from fusion.merging.errors import MergeError
from fusion.merging.settings import MergeSettings
from unified.errors import UnifiedError


def make_settings(**given: Any) -> MergeSettings:
    """Return the settings.

    Raises:
        UnifiedError: With what is wrong with them.
    """
    unknown = sorted(given.keys() - MergeSettings.__dataclass_fields__.keys())
    if unknown:
        there = ", ".join(MergeSettings.__dataclass_fields__)
        raise UnifiedError(f"unknown setting {unknown[0]!r}; there are: {there}")
    try:
        return MergeSettings(**given)
    except MergeError as error:
        raise UnifiedError(str(error)) from error
