"""The command line of ``unified merge``. What it does is imported when it is called."""

from __future__ import annotations

import argparse
from pathlib import Path

from unified import argument_types as types
from unified.command_parsers import add_command, add_machine, add_results

MERGE_END = """\
exit codes:
  0    done: the models are in DIR; the report says whether every task is within the allowed drop
  1    nothing was merged: see the message
  2    the command line is wrong
  130  interrupted

example:
  unified merge results --tasks digit,parity --data samples.pt --max-drop 0.01 --out merged"""

PRUNE = ("taylor", "vib", "none")


def add_merge(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``merge`` to the commands of ``unified``."""
    summary = "Merge finished jobs that take the same input into one network that is cheap for every subset of their tasks."
    parser = add_command(commands, "merge", _merge, summary, MERGE_END)
    add_results(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="new or empty folder for the models and the report"
    )
    _add_what(parser)
    _add_how(parser)
    parser.add_argument("--trust", action="store_true", help="accept model files that run their own code when loaded")
    parser.add_argument("--json", action="store_true", help="print every event as a line of JSON, last the report")


def _add_what(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tasks", type=types.names, default=(), metavar="NAME,NAME", help="merge only these jobs (default: all)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR|FILE",
        help="samples of the input they share, with labels of every task (default: what the jobs were trained and tested on)",
    )
    parser.add_argument(
        "--max-drop",
        type=types.drop,
        default=0.01,
        metavar="DROP",
        help="how much of its score a task may lose on validation data (default 0.01)",
    )
    parser.add_argument(
        "--alpha",
        type=types.alpha,
        default="auto",
        metavar="NUMBER|auto",
        help="how much exclusive neurons may tell about other tasks, a fraction of what their layer tells: small shares more, "
        "inf shares nothing (default auto: several are tried)",
    )
    parser.add_argument(
        "--prune",
        choices=PRUNE,
        default="taylor",
        metavar="taylor|vib|none",
        help="how neurons are removed after the merge (default taylor)",
    )
    parser.add_argument(
        "--private",
        type=types.names,
        default=(),
        metavar="PATH,PATH",
        help="modules of the models that are kept as they are, such as attention, by their path",
    )
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="make and report what to compare with, too: each model pruned alone, and the models zipped, then pruned",
    )


def _add_how(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("training")
    how.add_argument(
        "--steps",
        type=types.positive,
        metavar="N",
        help="training steps after each removal; five times that after the merge (60)",
    )
    how.add_argument("--batch-size", type=types.positive, metavar="N", help="samples of a training step (default 64)")
    how.add_argument("--lr", type=types.above_zero, metavar="RATE", help="learning rate of Adam (default 0.001)")
    add_machine(how)


def _merge(options: argparse.Namespace) -> int:
    from unified.merging.command import MergeOptions, merge_results

    return merge_results(
        MergeOptions(
            results=tuple(options.results),
            out=options.out,
            tasks=options.tasks,
            data=options.data,
            max_drop=options.max_drop,
            alpha=None if options.alpha == "auto" else options.alpha,
            prune=None if options.prune == "none" else options.prune,
            private=options.private,
            baselines=options.baselines,
            steps=options.steps,
            batch_size=options.batch_size,
            lr=options.lr,
            seed=options.seed,
            device=options.device,
            threads=options.threads,
            trust=options.trust,
            as_json=options.json,
        )
    )
