"""The command lines of ``unified variants select`` and ``figures``. What they do is imported when one is called."""

from __future__ import annotations

import argparse

from unified.command_parsers import Commands


def add_select(verbs: Commands[argparse.ArgumentParser]) -> None:
    """Add ``select`` to the verbs of ``unified variants``."""


def add_figures(verbs: Commands[argparse.ArgumentParser]) -> None:
    """Add ``figures`` to the verbs of ``unified variants``."""
