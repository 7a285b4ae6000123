"""The command lines of ``unified variants select`` and ``figures``. What they do is imported when one is called."""

from __future__ import annotations

import argparse
from pathlib import Path

from unified import argument_types as types
from unified.command_parsers import Commands, add_command

SELECT_END = """\
exit codes:
  0    a variant, or several together, satisfy the query
  3    a mishit: none do; the nearest are listed
  1    there is nothing to choose from: see the message
  2    the command line is wrong

example:
  unified variants select variants --tasks shoe,first --latency-ms 5 --min-accuracy 0.9"""

FIGURES_END = """\
figures, each as PNG and CSV:
  3, 7  the best score within each latency limit, of all tasks and of each
  4     latency against the depth of heads, the unused ones kept or removed
  5, 8  mishits against the required score, of all tasks and of each
  6     score against pruning

example:
  unified variants figures variants --out figures"""

RESIDENCIES = ("all", "none")


def add_select(verbs: Commands[argparse.ArgumentParser]) -> None:
    """Add ``select`` to the verbs of ``unified variants``."""
    summary = "Say which variants would answer a query, what they take and give, and what else there is."
    parser = add_command(verbs, "select", _select, summary, SELECT_END)
    _add_variants(parser)
    parser.add_argument("--tasks", type=types.names, metavar="TASK,TASK", help="what is to be answered (default: all tasks)")
    parser.add_argument("--latency-ms", type=types.above_zero, metavar="MS", help="limit for the whole answer (default: none)")
    parser.add_argument(
        "--min-accuracy",
        type=types.floors,
        metavar="SCORE|TASK=SCORE,…",
        help="from 0 to 1: for every task, or for some. With it the fastest that meets it is chosen, "
        "without it the most accurate within the limit",
    )
    parser.add_argument(
        "--accuracy-mode",
        choices=("per_task", "average"),
        default="per_task",
        metavar="per_task|average",
        help="what --min-accuracy is about (default per_task)",
    )
    parser.add_argument(
        "--budget",
        choices=("optimal", "equal"),
        default="optimal",
        metavar="optimal|equal",
        help="how several variants share the limit: as is best (default), or the same for each task, as in the paper",
    )
    parser.add_argument(
        "--on-mishit",
        choices=("reject", "best_effort"),
        default="reject",
        metavar="reject|best_effort",
        help="what is chosen if nothing satisfies the query: nothing (default), or the nearest",
    )
    parser.add_argument(
        "--resident",
        choices=RESIDENCIES,
        default="all",
        metavar="all|none",
        help="which variants are loaded already (default all)",
    )
    _add_latency(parser, quantile="p95")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def add_figures(verbs: Commands[argparse.ArgumentParser]) -> None:
    """Add ``figures`` to the verbs of ``unified variants``."""
    summary = "Draw the figures of the paper (MTLsys) over these variants, and print what they show."
    parser = add_command(verbs, "figures", _figures, summary, FIGURES_END)
    _add_variants(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write; is made")
    parser.add_argument(
        "--grid", type=types.several, default=20, metavar="N", help="latency limits, and required scores (default 20 of each)"
    )
    parser.add_argument(
        "--residency",
        choices=RESIDENCIES,
        metavar="all|none",
        help="which variants are loaded already (default: both, side by side)",
    )
    _add_latency(parser, quantile="p50")
    parser.add_argument(
        "--head-seconds",
        type=types.seconds,
        default=20.0,
        metavar="S",
        help="how long to time heads of several depths for figure 4 (default 20)",
    )


def _add_variants(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("variants", type=Path, metavar="VARIANTS", help="a folder of variants, profiled on this machine")
    parser.add_argument("--family", metavar="NAME", help="which, if there are several")


def _add_latency(parser: argparse.ArgumentParser, *, quantile: str) -> None:
    parser.add_argument(
        "--rows", type=types.positive, default=1, metavar="N", help="samples to be answered at once (default 1)"
    )
    parser.add_argument(
        "--quantile",
        choices=("p50", "p95"),
        default=quantile,
        metavar="p50|p95",
        help=f"of the measured inference latency (default {quantile})",
    )


def _select(options: argparse.Namespace) -> int:
    from unified.variants.select_command import SelectOptions, select_variants

    return select_variants(
        SelectOptions(
            variants=options.variants,
            family=options.family,
            tasks=options.tasks,
            latency_ms=options.latency_ms,
            min_accuracy=options.min_accuracy,
            accuracy_mode=options.accuracy_mode,
            budget=options.budget,
            on_mishit=options.on_mishit,
            rows=options.rows,
            resident=options.resident,
            quantile=options.quantile,
            as_json=options.json,
        )
    )


def _figures(options: argparse.Namespace) -> int:
    from unified.variants.figures_command import FigureOptions, draw

    return draw(
        FigureOptions(
            variants=options.variants,
            out=options.out,
            family=options.family,
            grid=options.grid,
            residency=options.residency,
            rows=options.rows,
            quantile=options.quantile,
            head_seconds=options.head_seconds,
        )
    )
