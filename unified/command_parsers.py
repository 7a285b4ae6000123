"""How the commands of ``unified`` are added to its parser: all in one form."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

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
