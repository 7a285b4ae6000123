"""The command lines of ``unified keygen`` and ``unified sign``. What they do is imported when it is called."""

from __future__ import annotations

import argparse
from pathlib import Path

from unified import argument_types as types
from unified.command_parsers import Commands, add_command

SIGN_EXIT_CODES = """\
exit codes:
  0  done
  1  nothing was written: see the message
  2  the command line is wrong
"""


def add_signing(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``keygen`` and ``sign`` to the commands of ``unified``."""
    summary = "Make a key to sign jobs with: the private half in a file, the line for the operator of a queue on stdout."
    parser = add_command(commands, "keygen", _keygen, summary, _end("unified keygen --out alice.key --user alice"))
    parser.add_argument(
        "--out", type=Path, required=True, metavar="KEYFILE", help="where the private key goes; not overwritten"
    )
    parser.add_argument(
        "--user", type=types.user, required=True, metavar="USER", help="whose key it is: it signs this user's jobs"
    )
    summary = "Sign a job folder for a queue, so that its model may run code there. Prints the job's id."
    parser = add_command(commands, "sign", _sign, summary, _end("unified sign jobs/lenet --key alice.key --queue lab"))
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a job folder; signature.json is written into it")
    parser.add_argument("--key", type=Path, required=True, metavar="KEYFILE", help="a private key of 'unified keygen'")
    parser.add_argument("--queue", required=True, metavar="NAME", help="the queue's name, as its operator has set it")
    parser.add_argument(
        "--expires",
        type=types.duration,
        default="7d",
        metavar="DURATION",
        help="how long it may be handed in, such as 90s, 30m, 12h or 7d (default 7d)",
    )


def _end(example: str) -> str:
    return f"{SIGN_EXIT_CODES}\nexample:\n  {example}"


def _keygen(options: argparse.Namespace) -> int:
    from unified.service.sign_command import keygen

    return keygen(options.out, options.user)


def _sign(options: argparse.Namespace) -> int:
    from unified.service.sign_command import sign

    return sign(options.folder, options.key, options.queue, options.expires)
