"""The command lines of the queue's verbs. What they do is imported when one is called, so that ``--help`` loads nothing."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from unified import argument_types as types
from unified.command_parsers import Commands, add_command

EXIT_CODES = """\
exit codes:
  0    done
  1    our error, or a job failed or is dead (of several: the worst)
  2    the command line is wrong
  3    a job was cancelled, none failed
  4    --timeout passed
  130  Ctrl-C: detached; nothing was cancelled
"""

SERVE_EXIT_CODES = """\
exit codes:
  0    stopped as asked; every job is saved
  1    it cannot serve: see the message
  2    the command line is wrong
  5    another supervisor has taken over this root
  130  a second signal: ended at once; jobs go on from their last checkpoints
"""

_STATES = (
    "queued",
    "loading",
    "running",
    "pausing",
    "paused",
    "cancelling",
    "retry-wait",
    "finished",
    "failed",
    "dead",
    "cancelled",
)

#: Options of ``serve`` that stand for a setting in config.toml of the same name.
_SETTINGS = (
    "scheduler",
    "slots",
    "threads",
    "device",
    "deterministic",
    "trust",
    "sandbox",
    "tensorboard",
    "lease_seconds",
    "stall_seconds",
    "checkpoint_seconds",
    "grace_seconds",
)


def add_queue_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the queue's verbs to the commands of ``unified``."""
    _add_serve(commands)
    _add_submit(commands)
    _add_ls(commands)
    for verb, summary in (
        ("show", "Tell everything about a job: what was submitted, what happened, attempts, checkpoints, neighbours."),
        ("explain", "Say what a job waits for, and what decides when it is its turn."),
    ):
        _add(commands, verb, summary, f"unified {verb} lenet-5f0c").add_argument("id", metavar="ID", help=_ID)
    _add_logs(commands)
    _add_moves(commands)
    _add_wait(commands)
    _add_top(commands)
    _add_doctor(commands)


_ID = "a job; its id may be shortened while unique"


def _add_serve(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands,
        "serve",
        "Run the queue in a folder: take in what is submitted, train it, publish results. Stop it with Ctrl-C or SIGTERM.",
        "unified serve --root queue --http 127.0.0.1:8080",
        is_listing=False,
    )
    parser.set_defaults(command=_serve)
    parser.add_argument("--http", metavar="HOST:PORT", help="also serve the HTTP API and a page there")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="tokens of the HTTP API; needed beyond localhost")
    settings = parser.add_argument_group("settings", "Each overrides the one of that name in ROOT/config.toml.")
    settings.add_argument("--scheduler", metavar="NAME[:OPTION=VALUE]", help="who trains next; see 'unified schedulers'")
    settings.add_argument("--slots", metavar="N|auto", type=types.slots, help="number of workers: one per GPU, or per core")
    settings.add_argument("--threads", metavar="T", type=types.positive, help="CPU threads per slot")
    settings.add_argument("--device", metavar="auto|cpu|cuda:0", help="where to train")
    for name, text in (
        ("deterministic", "use deterministic kernels only"),
        ("trust", "accept models that run their own code when loaded"),
        ("tensorboard", "write TensorBoard event files, one run per job"),
    ):
        settings.add_argument(f"--{name}", action="store_const", const=True, help=text)
    settings.add_argument(
        "--sandbox",
        choices=("off", "auto", "required"),
        metavar="off|auto|required",
        help="keep jobs from files, network and processes that are not theirs",
    )
    for name, text in (
        ("lease", "how long a job stays with a supervisor that does not renew"),
        ("stall", "a worker that finishes no step for so long is replaced"),
        ("checkpoint", "interval between checkpoints"),
        ("grace", "what SIGTERM leaves for checkpoints"),
    ):
        settings.add_argument(f"--{name}-seconds", type=types.seconds, metavar="SECONDS", help=text)
    settings.add_argument(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="KEY=VALUE",
        help="any other setting of config.toml, e.g. max_jobs_per_user=20; may be repeated",
    )


def overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the command line of ``serve`` gives, by their names in config.toml."""
    given = {name: getattr(options, name) for name in _SETTINGS}
    return {name: value for name, value in given.items() if value is not None} | dict(options.set)


def _add_submit(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands,
        "submit",
        "Hand in jobs: folders, folders of job folders, or zips. Returns when they are safe on disk and were checked.",
        "unified submit jobs/lenet --priority 5",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a job folder, a folder of them, or a .zip of one")
    parser.add_argument("--user", metavar="USER", help="whose job it is (default: what job.json says)")
    parser.add_argument("--priority", type=int, metavar="N", help="lower runs earlier (default: what job.json says)")
    parser.add_argument("--id", metavar="ID", help="what to call the job (default: its name and a hash of its content)")
    parser.add_argument("--client-token", metavar="TOKEN", help="a second submission with the same one is the first job again")
    parser.add_argument("--wait", action="store_true", help="follow the jobs to their end")
    parser.add_argument("--no-wait", action="store_true", help="do not wait until the jobs were checked")
    parser.add_argument(
        "--check-timeout",
        type=types.seconds,
        default=20.0,
        metavar="SECONDS",
        help="how long to wait for the check (default 20)",
    )
    parser.add_argument("--timeout", type=types.seconds, metavar="SECONDS", help="with --wait: stop following after so long")


def _add_ls(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(commands, "ls", _LS, "unified ls --state running", aliases=("queue",))
    parser.add_argument("--user", metavar="USER", help="only this user's")
    parser.add_argument("--state", action="append", default=[], choices=_STATES, metavar="STATE", help=_STATE_HELP)
    parser.add_argument(
        "--limit", type=types.positive, default=100, metavar="N", help="at most so many, the newest (default 100)"
    )
    parser.add_argument("--cursor", metavar="CURSOR", help="where the last page ended, as --json told")


_LS = "List jobs, each that does not train with the reason why."
_STATE_HELP = f"only those in this state; may be repeated: {', '.join(_STATES)}"


def _add_logs(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(commands, "logs", "Print a job's log.", "unified logs -f lenet-5f0c")
    parser.add_argument("id", metavar="ID", help=_ID)
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is logged until the job ends")
    parser.add_argument("-n", "--lines", type=types.positive, metavar="N", help="only the last N lines")


def _add_moves(commands: Commands[argparse.ArgumentParser]) -> None:
    for verb, summary in (
        ("pause", "Set jobs aside: their state in a checkpoint, their memory free."),
        ("resume", "Let paused jobs wait for a slot again, in their old place."),
        ("cancel", "End jobs. Returns when they are off their slots; log and last checkpoint stay."),
        ("checkpoint", "Save the state of jobs now."),
        ("requeue", "Queue jobs again that failed, are dead or were cancelled; they go on from their checkpoints."),
    ):
        parser = _add(commands, verb, summary, f"unified {verb} lenet-5f0c")
        parser.add_argument("ids", nargs="*", metavar="ID", help=_ID)
        parser.add_argument("--user", metavar="USER", help="only this user's jobs; without ids: all of them")
        parser.add_argument("--state", action="append", default=[], choices=_STATES, metavar="STATE", help=_STATE_HELP)
        parser.add_argument("--no-wait", action="store_true", help="do not wait until the supervisor has done it")
        parser.add_argument("--timeout", type=types.seconds, metavar="SECONDS", help="wait no longer than so")
        if verb == "requeue":
            parser.add_argument("--from-scratch", action="store_true", help="forget checkpoints: train from the beginning")


def _add_wait(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands, "wait", "Wait until all of these jobs have ended; tell each when it does.", "unified wait lenet-5f0c"
    )
    parser.add_argument("ids", nargs="+", metavar="ID", help=_ID)
    parser.add_argument("--timeout", type=types.seconds, metavar="SECONDS", help="stop waiting after so long")


def _add_top(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(commands, "top", "Watch slots, members, memory and the queue.", "unified top --interval 2")
    parser.add_argument("--interval", type=types.seconds, default=1.0, metavar="SECONDS", help="how often to look (default 1)")
    parser.add_argument("--once", action="store_true", help="print it once; so it is too where there is no terminal")


def _add_doctor(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands, "doctor", "Check folder, disk, versions, slots, memory, locks and store.", "unified doctor --root queue"
    )
    parser.add_argument("--crash-points", action="store_true", help="list where UNIFIED_FAULT can strike, for tests")


def _add(
    commands: Commands[argparse.ArgumentParser],
    name: str,
    summary: str,
    example: str,
    *,
    aliases: tuple[str, ...] = (),
    is_listing: bool = True,
) -> argparse.ArgumentParser:
    """Add a verb with the options that all have; all but ``serve`` print something about jobs."""
    end = f"{EXIT_CODES if is_listing else SERVE_EXIT_CODES}\nexample:\n  {example}"
    parser = add_command(commands, name, _queue_command, summary, end, aliases=aliases)
    parser.add_argument("--root", type=Path, metavar="DIR", help="the queue's folder (default: $UNIFIED_ROOT)")
    parser.add_argument("--json", action="store_true", help="print JSON: one document, or lines where it streams")
    if is_listing:
        parser.add_argument("--quiet", "-q", action="store_true", help="print ids only")
    parser.set_defaults(verb=name)
    return parser


def _queue_command(options: argparse.Namespace) -> int:
    _find_root(options)
    if getattr(options, "ids", None) == [] and not (options.user or options.state):
        options.parser.error(f"which jobs to {options.verb}? Give ids, --user or --state")
    from unified.service.queue_command import run_verb

    return run_verb(options)


def _serve(options: argparse.Namespace) -> int:
    _find_root(options)
    options.overrides = overrides(options)
    from unified.service.serve_command import serve

    return serve(options)


def _find_root(options: argparse.Namespace) -> None:
    """Take the root from the environment where the command line has none."""
    options.root_option = options.root
    if options.root is None and os.environ.get("UNIFIED_ROOT"):
        options.root = Path(os.environ["UNIFIED_ROOT"])
    if options.root is None:
        options.parser.error("which queue? Give --root DIR, or set UNIFIED_ROOT to its folder")


def _setting(text: str) -> tuple[str, Any]:
    """Read KEY=VALUE, where VALUE is as in TOML, or else plain text."""
    key, separator, value = text.partition("=")
    key = key.strip().replace("-", "_")
    if not separator or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    import tomllib  # only where a setting is given

    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
