"""What can keep models from being one stack."""

from __future__ import annotations


class NotStackableError(ValueError):
    """These models cannot be one stack; the message says what differs, and between which of them, or what no stack can do."""


class ValueDependentError(RuntimeError):
    """A model asked for a value that differs between the members (``.item()``, ``if tensor``): they cannot go on as one."""
