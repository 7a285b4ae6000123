"""The command line of ``unified stack``. What it does is imported when it is called."""

from __future__ import annotations

import argparse
from pathlib import Path

from unified import argument_types as types
from unified.command_parsers import add_command

STACK_END = """\
exit codes:
  0    done: FILE answers for all models at once, as each alone
  1    nothing was written: see the message
  2    the command line is wrong
  130  interrupted

example:
  unified stack results/lenet-1 results/lenet-2 results/lenet-3 --out lenets.pt2"""


def add_stack(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``stack`` to the commands of ``unified``."""
    summary = "Make one module of trained models of one architecture that answers for all of them at once."
    parser = add_command(commands, "stack", _stack, summary, STACK_END)
    parser.add_argument(
        "models",
        nargs="+",
        type=Path,
        metavar="MODEL",
        help="the result of a job, a job folder, a folder of such, or a model file; members are in this order",
    )
    parser.add_argument("--out", type=types.archive, required=True, metavar="FILE", help="where the module goes, a .pt2")
    parser.add_argument(
        "--one-input", action="store_true", help="all models get the same input (default: each gets its own, side by side)"
    )
    parser.add_argument(
        "--batch-size",
        type=types.positive,
        metavar="N",
        help="samples to measure with (default: the first job's batch size, or 32)",
    )
    parser.add_argument("--device", default="cpu", metavar="auto|cpu|cuda:0", help="where the module is to run (default cpu)")
    parser.add_argument(
        "--threads", type=types.positive, metavar="T", help="CPU threads (default: as many as are fastest here)"
    )
    parser.add_argument("--trust", action="store_true", help="accept model files that run their own code when loaded")
    parser.add_argument("--json", action="store_true", help="print one line of JSON in place of the table")


def _stack(options: argparse.Namespace) -> int:
    from unified.answering.command import StackOptions, stack_files

    return stack_files(
        StackOptions(
            models=tuple(options.models),
            out=options.out,
            one_input=options.one_input,
            batch_size=options.batch_size,
            device=options.device,
            threads=options.threads,
            trust=options.trust,
            as_json=options.json,
        )
    )
