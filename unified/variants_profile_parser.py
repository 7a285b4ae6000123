"""The command lines of ``unified variants profile`` and ``list``. What they do is imported when one is called."""

from __future__ import annotations

import argparse
from pathlib import Path

from unified import argument_types as types
from unified.command_parsers import Commands, add_command

PROFILE_END = """\
exit codes:
  0    done: every variant has a profile for this machine
  3    some variants are rejected: an output is not finite, or files are damaged; the others are done
  1    nothing was measured: see the message
  2    the command line is wrong
  130  interrupted; what was measured by then is kept

example:
  unified variants profile variants --threads 1"""

LIST_END = """\
example:
  unified variants list variants"""


def add_profile(verbs: Commands[argparse.ArgumentParser]) -> None:
    """Add ``profile`` to the verbs of ``unified variants``."""
    summary = "Measure variants on this machine: scores, loading and inference. Only what is new is measured."
    parser = add_command(verbs, "profile", _profile, summary, PROFILE_END)
    _add_store(parser)
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR|FILE",
        help="held-out samples with labels of every task: a file, or a folder with validation or test "
        "(default: those that 'build' kept)",
    )
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda:0", help="where they are to be served (default cpu)")
    parser.add_argument(
        "--threads", type=types.positive, default=1, metavar="T", help="CPU threads they are to be served with (default 1)"
    )
    parser.add_argument(
        "--batches",
        type=types.batches,
        default=(1, 2, 4, 8, 16, 32),
        metavar="N,N",
        help="batch sizes to measure; 1 is always among them (default 1,2,4,8,16,32)",
    )
    parser.add_argument("--force", action="store_true", help="measure again what was measured on this machine before")
    parser.add_argument("--json", action="store_true", help="print every event as a line of JSON, last the variants")


def add_list(verbs: Commands[argparse.ArgumentParser]) -> None:
    """Add ``list`` to the verbs of ``unified variants``."""
    summary = "List variants: what they are, what they score, and what they take on this machine."
    parser = add_command(verbs, "list", _list, summary, LIST_END)
    _add_store(parser)
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each family")


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("variants", type=Path, metavar="VARIANTS", help="the folder that 'unified variants build' made")
    parser.add_argument("--family", metavar="NAME", help="only this family (default: all)")


def _profile(options: argparse.Namespace) -> int:
    from unified.variants.profile_command import ProfileCommand, profile_variants

    return profile_variants(
        ProfileCommand(
            variants=options.variants,
            family=options.family,
            data=options.data,
            device=options.device,
            threads=options.threads,
            batches=options.batches,
            force=options.force,
            as_json=options.json,
        )
    )


def _list(options: argparse.Namespace) -> int:
    from unified.variants.list_command import list_variants

    return list_variants(options.variants, options.family, as_json=options.json)
