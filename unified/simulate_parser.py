"""The command line of ``unified simulate``. What it does is imported when it is called."""

from __future__ import annotations

import argparse
from pathlib import Path

import unified
from unified import argument_types as types
from unified.command_parsers import Commands, add_command

MOST_SECONDS = 1e12  #: 30,000 years: sums of times remain exact to a second

SIMULATE_END = """\
exit codes:
  0    done; with --golden, every time is as it must be
  3    with --golden: a time is not
  1    nothing was simulated: see the message
  2    the command line is wrong
  130  interrupted

example:
  unified simulate trace.csv --compare fcfs,default --slots 4"""


def add_simulate(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``simulate`` to the commands of ``unified``."""
    summary = "Say what schedulers would do to a trace of jobs: completion times, slowdown, fairness. Trains nothing."
    parser = add_command(commands, "simulate", _simulate, summary, SIMULATE_END)
    parser.add_argument(
        "trace",
        nargs="?",
        type=Path,
        metavar="TRACE",
        help="a CSV file with the columns job_id, submit_s and duration_s; or a folder of 'unified run --out' or a queue, to "
        "see how far off the simulator is",
    )
    parser.add_argument("--golden", action="store_true", help="in place of a trace: the paper's case, checked to the second")
    parser.add_argument(
        "--compare",
        metavar="NAME,NAME",
        help="schedulers; the first is what the others are measured against (default fcfs,default)",
    )
    _add_workload(parser)
    _add_host(parser)
    _add_engine(parser)
    parser.add_argument("--json", action="store_true", help="print one object in place of the tables")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="write plots there")


def _add_workload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=types.positive, default=1200, metavar="N", help="the most jobs (default 1200)")
    parser.add_argument(
        "--load", type=types.within(1e-6, 1e6), default=0.9, metavar="LOAD", help="work per slot time (default 0.9)"
    )
    parser.add_argument(
        "--min-seconds",
        type=types.within(0, MOST_SECONDS),
        default=30.0,
        metavar="S",
        help="the least duration taken (default 30)",
    )
    parser.add_argument(
        "--max-seconds",
        type=types.within(0, MOST_SECONDS),
        default=86400.0,
        metavar="S",
        help="the greatest (default 86400, a day)",
    )
    parser.add_argument(
        "--sigma", type=types.within(0, 20), default=1.0, metavar="X", help="error of estimates, of their logarithm (default 1)"
    )
    parser.add_argument("--seed", type=types.whole, default=0, metavar="N", help="of the estimates (default 0)")
    parser.add_argument(
        "--seeds", type=types.positive, default=1, metavar="N", help="how many seeds, from --seed on (default 1)"
    )
    parser.add_argument("--users-column", default="user", metavar="NAME", help="who owns a job (default user)")
    parser.add_argument(
        "--deadline-factor",
        type=types.within(1e-6, 1e6),
        metavar="F",
        help="each job is due F times its duration after its submission",
    )


def _add_host(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slots", type=types.positive, default=4, metavar="N", help="of the host (default 4)")
    parser.add_argument(
        "--quantum", default="auto", metavar="auto|TIME", help="of a turn (default auto: median duration / 10, at least 60s)"
    )
    parser.add_argument(
        "--corun",
        type=types.within(1, 2),
        default=1.0,
        metavar="S",
        help="speed of two units on a slot; 1 (default): never two",
    )
    parser.add_argument(
        "--corun-table", type=Path, metavar="FILE", help="speeds of pairs of models: a CSV file with one,other,speed"
    )
    parser.add_argument(
        "--placement",
        choices=("global", "resident"),
        default="global",
        help="a unit may go on anywhere (default), or only on the slot where it began",
    )
    parser.add_argument(
        "--switch-seconds",
        type=types.within(0, MOST_SECONDS),
        default=0.0,
        metavar="S",
        help="cost of beginning a turn (default 0)",
    )
    parser.add_argument(
        "--checkpoint-seconds",
        type=types.within(0, MOST_SECONDS),
        default=0.0,
        metavar="S",
        help="cost of stopping a unit (default 0)",
    )


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        action="store_true",
        help="train small jobs like the first of the trace in the engine, scaled down, and simulate just those",
    )
    parser.add_argument("--engine-jobs", type=types.positive, default=20, metavar="N", help="how many (default 20)")
    parser.add_argument(
        "--engine-seconds", type=types.above_zero, default=60.0, metavar="S", help="their work in all (default 60)"
    )
    parser.add_argument(
        "--engine-slots", type=types.positive, default=1, metavar="N", help="slots of one thread each (default 1)"
    )


def _play(options: argparse.Namespace) -> int:
    from schedulers.simulation.traces import Selection
    from unified.replay_command import play_trace

    selection = Selection(
        jobs=options.engine_jobs,
        min_seconds=options.min_seconds,
        max_seconds=options.max_seconds,
        slots=options.engine_slots,
        load=options.load,
        sigma=0.0,
        users_column=options.users_column,
        deadline_factor=options.deadline_factor,
    )
    return play_trace(
        options.trace,
        selection,
        compare=_compared(options),
        quantum=options.quantum,
        seconds=options.engine_seconds,
        as_json=options.json,
    )


def _compared(options: argparse.Namespace) -> str:
    return "fcfs,default" if options.compare is None else options.compare


def _check(options: argparse.Namespace) -> None:
    if (options.trace is None) == (not options.golden):
        options.parser.error("expected a TRACE, or --golden")
    if options.min_seconds > options.max_seconds:
        options.parser.error("--min-seconds is greater than --max-seconds")
    if options.engine and options.golden:
        options.parser.error("--engine needs a TRACE")
    is_folder = options.trace is not None and options.trace.is_dir()
    if is_folder and (options.engine or options.compare is not None):
        options.parser.error("a folder is replayed as it ran: --engine and --compare are for a TRACE that is a file")
    if options.plot is not None and (is_folder or options.engine or options.golden):
        options.parser.error("--plot is for a TRACE that is a file, without --engine")


def _simulate(options: argparse.Namespace) -> int:
    _check(options)
    if options.trace is not None and options.trace.is_dir():
        from unified.replay_command import replay_folder

        return replay_folder(options.trace, as_json=options.json)
    if options.engine:
        return _play(options)
    from unified.simulate_command import SimulateOptions, golden, simulate_trace

    if options.golden:
        return golden(version=unified.__version__, as_json=options.json)
    return simulate_trace(
        SimulateOptions(
            trace=options.trace,
            compare=_compared(options),
            jobs=options.jobs,
            load=options.load,
            min_seconds=options.min_seconds,
            max_seconds=options.max_seconds,
            sigma=options.sigma,
            seed=options.seed,
            seeds=options.seeds,
            users_column=options.users_column,
            deadline_factor=options.deadline_factor,
            slots=options.slots,
            quantum=options.quantum,
            corun=options.corun,
            corun_table=options.corun_table,
            placement=options.placement,
            switch_seconds=options.switch_seconds,
            checkpoint_seconds=options.checkpoint_seconds,
            as_json=options.json,
            plot=options.plot,
            version=unified.__version__,
        )
    )
