"""What values on the command line may be; a wrong one is a usage error that says what was expected."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """Return a whole number from 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def slots(text: str) -> int | str:
    """Return a number of slots, or ``"auto"``."""
    return text if text == "auto" else positive(text)


def seconds(text: str) -> float:
    """Return a finite duration above 0."""
    wrong = argparse.ArgumentTypeError(f"expected seconds, a number above 0, got {text!r}")
    try:
        number = float(text)
    except ValueError:
        raise wrong from None
    if not 0 < number < float("inf"):
        raise wrong
    return number
