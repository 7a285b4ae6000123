"""The command lines of ``unified variants profile`` and ``list``. What they do is imported when one is called."""

from __future__ import annotations

import argparse

from unified.command_parsers import Commands


def add_profile(verbs: Commands[argparse.ArgumentParser]) -> None:
    """Add ``profile`` to the verbs of ``unified variants``."""


def add_list(verbs: Commands[argparse.ArgumentParser]) -> None:
    """Add ``list`` to the verbs of ``unified variants``."""
