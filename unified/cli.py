"""The command line: parses, calls, and turns every mistake into a line. What the commands do is in their own modules."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import unified
from unified import argument_types as types
from unified.command_parsers import add_command
from unified.convert_parsers import add_conversions
from unified.errors import InvalidSubmission, UnifiedError
from unified.fuse_parsers import add_fuse, add_fuse_after_run, check_fuse_after_run, check_jobs_before_run, fuse_after_run
from unified.merge_parser import add_merge
from unified.queue_parsers import add_queue_commands
from unified.serve_models_parser import add_serve_models
from unified.sign_parsers import add_signing
from unified.simulate_parser import add_simulate
from unified.stack_parser import add_stack
from unified.variants_parser import add_variants

EXIT_ERROR, EXIT_INTERRUPTED = 1, 130

RUN_END = """\
exit codes:
  0    every job finished
  3    at least one job failed; the others are done
  1    nothing was trained, or the run broke off: see the message
  2    the command line is wrong
  130  interrupted; --resume goes on

example:
  unified run jobs/ --out results --scheduler sjf --slots 2"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: What stands behind ``unified`` on the command line; by default that of this process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = build_parser().parse_args(arguments)
    options.arguments = tuple(arguments)
    if not logging.root.handlers:
        logging.root.addHandler(_Warnings(logging.WARNING))
    try:
        return guarded(lambda: options.command(options))
    finally:
        _flush()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; ``command`` of what it reads is the function to call."""
    parser = argparse.ArgumentParser(
        prog="unified",
        description="Train many people's PyTorch models as one; each comes back as if it had trained alone.",
        epilog="example:\n  unified run jobs/ --out results",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(commands)
    _add_inspect(commands)
    add_fuse(commands)
    add_merge(commands)
    add_stack(commands)
    add_variants(commands)
    add_serve_models(commands)
    add_conversions(commands)
    add_queue_commands(commands)
    add_signing(commands)
    add_simulate(commands)
    add_command(
        commands,
        "schedulers",
        _schedulers,
        "List the schedulers and their options.",
        "example:\n  unified schedulers",
    )
    add_command(
        commands,
        "version",
        _version,
        "Print the versions of unified, PyTorch and Python.",
        "example:\n  unified version",
    )
    return parser


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(commands, "run", _run, "Train the jobs of one or several folders.", RUN_END)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a job folder, or a folder of job folders")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go; needed except with --dry-run")
    parser.add_argument(
        "--scheduler",
        default="default",
        metavar="NAME[:OPTION=VALUE]",
        help="who trains next (default 'default', which is aging(srtf)); 'unified schedulers' lists them",
    )
    parser.add_argument(
        "--slots",
        default="auto",
        type=types.slots,
        metavar="N|auto",
        help="how many jobs train at the same time (default auto: planned from the jobs, one per GPU)",
    )
    parser.add_argument("--threads", type=types.positive, metavar="T", help="CPU threads per slot (default: planned)")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda:0", help="where to train (default auto)")
    parser.add_argument("--trust", action="store_true", help="accept model files that run their own code when loaded")
    parser.add_argument("--resume", action="store_true", help="go on with the run in DIR from its checkpoints")
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="use deterministic kernels only: on a GPU this makes results equal the plain loop",
    )
    parser.add_argument(
        "--no-stacking", action="store_false", dest="stacking", help="never let jobs of one architecture step as one"
    )
    parser.add_argument("--dry-run", action="store_true", help="print order, slots, memory and shared data; train nothing")
    parser.add_argument("--json", action="store_true", help="print every event as a line of JSON, last the summary")
    add_fuse_after_run(parser)


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "Say what a job folder holds and needs, or everything that is wrong with it."
    parser = add_command(commands, "inspect", _inspect, summary, "example:\n  unified inspect jobs/lenet")
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="a job folder: job.json, the model, the data; with --blocks also a .umodel"
    )
    parser.add_argument(
        "--blocks", action="store_true", help="print the blocks that fusion would see: shapes, parameters, FLOPs, latency"
    )
    parser.add_argument("--trust", action="store_true", help="accept model files that run their own code when loaded")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


# The commands import what they need when they are called: 'unified --help' loads nothing but this file.


def _run(options: argparse.Namespace) -> int:
    if options.out is None and not options.dry_run:
        options.parser.error("--out DIR is needed (or --dry-run, which trains nothing)")
    check_fuse_after_run(options)
    check_jobs_before_run(options)
    from unified.nursery import Nursery

    # Its import of torch takes longest of all that a run does before it trains: it begins before our own imports.
    with closing(Nursery()) as nursery:
        from unified.run_command import RunOptions, run

        code = run(
            RunOptions(
                folders=tuple(options.folders),
                out=options.out,
                scheduler=options.scheduler,
                slots=options.slots,
                threads=options.threads,
                device=options.device,
                trust=options.trust,
                resume=options.resume,
                deterministic=options.deterministic,
                stacking=options.stacking,
                dry_run=options.dry_run,
                as_json=options.json,
                command=("unified", *options.arguments),
                nursery=nursery,
            )
        )
    return fuse_after_run(options, code)


def _inspect(options: argparse.Namespace) -> int:
    if options.blocks:
        from unified.fusing.blocks_command import inspect_blocks

        return inspect_blocks(options.folder, trust=options.trust, as_json=options.json)
    from unified.inspect_command import inspect

    return inspect(options.folder, trust=options.trust, as_json=options.json)


def _schedulers(options: argparse.Namespace) -> int:
    from schedulers import registry
    from unified.tables import schedulers_table
    from unified.terminal import make_console, show

    show(make_console(), schedulers_table(registry.listed()))
    return 0


def _version(options: argparse.Namespace) -> int:
    from unified.summary import versions
    from unified.terminal import line_writer

    found = versions()
    line_writer(sys.stdout)(f"unified {unified.__version__}, torch {found['torch']}, Python {found['python']}")
    return 0


def guarded(command: Callable[[], int]) -> int:
    """Call ``command``; what goes wrong becomes lines on stderr, a traceback only under UNIFIED_DEBUG=1."""
    try:
        return command()
    except KeyboardInterrupt:
        _complain(["interrupted"])
        return EXIT_INTERRUPTED
    except Exception as error:  # the border: a user gets a line, whatever went wrong
        if os.environ.get("UNIFIED_DEBUG") == "1":
            raise
        _complain(_lines(error))
        return EXIT_ERROR


def _lines(error: Exception) -> list[str]:
    """Say what went wrong: a line for each problem."""
    from schedulers.base import SchedulerConfigError
    from serving.errors import ServingError

    if isinstance(error, InvalidSubmission):
        return [" ".join(str(problem).split()) for problem in error.problems]
    if isinstance(error, UnifiedError | SchedulerConfigError | ServingError):
        return str(error).splitlines()
    if isinstance(error, OSError) and error.strerror:
        return [f"{error.strerror}: {error.filename}" if error.filename else error.strerror]
    what = " ".join(str(error).split())
    return [f"internal error, please report: {type(error).__name__}: {what} (UNIFIED_DEBUG=1 shows where)"]


class _Warnings(logging.Handler):
    """Shows warnings as lines like any other of ours; on today's stderr, which the live table takes over."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line."""
        _complain([" ".join(record.getMessage().split())])


def _complain(lines: Sequence[str]) -> None:
    for line in lines:
        sys.stderr.write(f"unified: {line}\n")


def _flush() -> None:
    """Write out what is left; where nobody reads, let the interpreter's own flush at exit find nobody to miss."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
