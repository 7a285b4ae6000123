"""The command line of ``unified serve-models``. What it does is imported when it is called."""

from __future__ import annotations

import argparse
from pathlib import Path

from unified import argument_types as types
from unified.command_parsers import add_command

SERVE_MODELS_END = """\
exit codes:
  0    drained after SIGTERM or Ctrl-C: every accepted request was answered
  1    it could not start, or accepted requests were left unanswered: see the message
  2    the command line is wrong
  130  stopped at once: by a second signal, or before it was ready

example:
  unified serve-models variants --http 127.0.0.1:8090"""


def add_serve_models(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``serve-models`` to the commands of ``unified``."""
    summary = "Answer queries (tasks, latency, accuracy) over HTTP, each by the best of many variants of a model."
    parser = add_command(commands, "serve-models", _serve_models, summary, SERVE_MODELS_END)
    parser.add_argument("variants", type=Path, metavar="VARIANTS", help="as 'unified variants build' wrote them")
    _add_http(parser.add_argument_group("HTTP", "The Open Inference Protocol v2, without authentication."))
    _add_device(parser.add_argument_group("device"))
    _add_batching(parser.add_argument_group("batching"))


def _add_http(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--http",
        default="127.0.0.1:8090",
        metavar="HOST:PORT",
        help="where to listen (default 127.0.0.1:8090); port 0 takes any that is free",
    )
    group.add_argument("--family", metavar="NAME", help="serve only this model (default: all)")
    group.add_argument(
        "--latency-ms", type=types.above_zero, metavar="MS", help="limit of requests that give none (default: no limit)"
    )
    group.add_argument(
        "--max-body-mb", type=types.above_zero, default=16.0, metavar="MB", help="largest body of a request (default 16)"
    )
    group.add_argument("--mishit-log", type=Path, metavar="FILE", help="append a line of JSON for each mishit")
    group.add_argument(
        "--drain-seconds",
        type=types.seconds,
        default=30.0,
        metavar="SECONDS",
        help="for accepted requests to be answered after SIGTERM or Ctrl-C (default 30)",
    )
    group.add_argument(
        "--drain-grace-seconds",
        type=types.within(0, 3600),
        default=0.0,
        metavar="SECONDS",
        help="after SIGTERM go on accepting for so long, while not ready, for balancers to notice (default 0)",
    )


def _add_device(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", default="cpu", metavar="cpu|cuda:0", help="where variants run (default cpu)")
    group.add_argument(
        "--threads", type=types.positive, default=1, metavar="T", help="CPU threads, as profiled with (default 1)"
    )
    group.add_argument(
        "--memory-mb", type=types.above_zero, metavar="MB", help="of weights on the device at most (default: no limit)"
    )
    group.add_argument(
        "--pin", type=types.names, default=(), metavar="ID,ID", help="variants, by id or name, that stay on the device"
    )
    group.add_argument("--profile-on-start", action="store_true", help="first measure what was not measured on this machine")


def _add_batching(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--max-batch", type=types.positive, default=32, metavar="ROWS", help="of one batch (default 32)")
    group.add_argument(
        "--max-delay-ms",
        type=types.within(0, 10_000),
        default=0.0,
        metavar="MS",
        help="how long an idle device waits for a batch to grow (default 0: batches form while it is busy)",
    )
    group.add_argument("--no-batching", action="store_true", help="run each request alone")


def _serve_models(options: argparse.Namespace) -> int:
    if options.no_batching and (options.max_batch != 32 or options.max_delay_ms):
        options.parser.error("--max-batch and --max-delay-ms have no effect with --no-batching")
    from unified.serve_models_command import serve_models

    return serve_models(options)
