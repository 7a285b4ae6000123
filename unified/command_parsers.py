"""How the commands of ``unified`` are added to its parser: all in one form."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from unified import argument_types as types

Commands = argparse._SubParsersAction


def add_command(
    commands: Commands[argparse.ArgumentParser],
    name: str,
    action: Callable[[argparse.Namespace], int],
    summary: str,
    end: str,
    *,
    aliases: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """Add a command and return its parser.

    Args:
        commands: Those of ``unified``.
        name: What it is called.
        action: What is called with the options, and returns the exit code.
        summary: What it does, in a line.
        end: What stands at the end of its help, as it is.
        aliases: What else it is called.
    """
    parser = commands.add_parser(
        name,
        aliases=aliases,
        help=summary,
        description=summary,
        epilog=end,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=action, parser=parser)
    return parser


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add the results of jobs that a command works on."""
    parser.add_argument(
        "results",
        nargs="+",
        type=Path,
        metavar="RESULT",
        help="the result of a job, or a folder of them, as 'unified run' left it",
    )


def add_machine(group: argparse._ArgumentGroup) -> None:
    """Add what training on one machine is decided by: random numbers, device and threads."""
    group.add_argument("--seed", type=types.whole, default=0, metavar="N", help="of all random numbers (default 0)")
    group.add_argument("--device", default="auto", metavar="auto|cpu|cuda:0", help="where to train and measure (default auto)")
    group.add_argument("--threads", type=types.positive, metavar="T", help="CPU threads (default: as many as are fastest here)")
