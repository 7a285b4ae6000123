"""The command line of ``unified fuse`` and of ``unified run --fuse``. What they do is imported when one is called."""

from __future__ import annotations

import argparse
from pathlib import Path

from unified import argument_types as types
from unified.command_parsers import add_command, add_machine, add_results

FUSE_END = """\
exit codes:
  0    done: the model is in DIR; where nothing faster was within the allowed drop, it is the originals side by side
  1    nothing was fused: see the message
  2    the command line is wrong
  130  interrupted; --resume goes on

example:
  unified fuse results/digit results/parity --max-drop 0.01 --out fused"""

METRICS = ("latency", "flops", "parameters", "memory")
POLICIES = ("guided", "annealing", "random", "exhaustive")
PRESETS = ("full", "paper", "paper-p", "paper-pr")
BASELINES = ("original", "all-shared", "tree", "random")


def add_fuse(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``fuse`` to the commands of ``unified``."""
    summary = "Fuse finished jobs that take the same input into one faster network that answers all of them."
    parser = add_command(commands, "fuse", _fuse, summary, FUSE_END)
    add_results(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the fused model and the report go")
    _add_what(parser)
    _add_how(parser)
    _add_effort(parser)
    parser.add_argument("--trust", action="store_true", help="accept model files that run their own code when loaded")
    parser.add_argument("--json", action="store_true", help="print every event as a line of JSON, last the report")


def _add_what(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-drop",
        type=types.drops,
        default=(0.01,),
        metavar="DROP[,DROP]",
        help="how much of its score a task may lose (default 0.01); of several the first one's model goes to DIR itself",
    )
    parser.add_argument(
        "--tasks", type=types.names, default=(), metavar="NAME,NAME", help="fuse only these jobs (default: all)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR|FILE",
        help="samples of the input they share, labels optional (default: what the jobs were trained and tested on)",
    )
    parser.add_argument(
        "--label-free", action="store_true", help="judge by agreement with the models themselves, whatever labels there are"
    )
    parser.add_argument(
        "--metric",
        choices=METRICS,
        default="latency",
        metavar="NAME",
        help="what is to become small: latency as measured here (default), flops, parameters or memory",
    )


def _add_how(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("search")
    how.add_argument(
        "--policy",
        choices=POLICIES,
        metavar="NAME",
        help="who proposes what to share: guided, annealing, random or exhaustive (default: the preset's)",
    )
    how.add_argument(
        "--preset",
        choices=PRESETS,
        default="full",
        metavar="NAME",
        help="all settings at once: full (default), or GMorph's as paper, paper-p or paper-pr",
    )
    how.add_argument(
        "--baseline",
        choices=BASELINES,
        metavar="NAME",
        help="to compare with: original (share nothing), all-shared, tree or random, in place of the policy",
    )
    how.add_argument(
        "--epochs", type=types.positive, metavar="N", help="passes over the training data for a candidate, at most"
    )
    how.add_argument("--batch-size", type=types.positive, metavar="N", help="samples of a training step")
    add_machine(how)


def _add_effort(parser: argparse.ArgumentParser) -> None:
    effort = parser.add_argument_group("effort")
    effort.add_argument("--budget-seconds", type=types.seconds, metavar="SECONDS", help="stop training after so long")
    effort.add_argument("--candidates", type=types.positive, metavar="N", help="stop after so many candidates (default 60)")
    effort.add_argument("--resume", action="store_true", help="go on with the search in DIR")
    effort.add_argument("--fresh", action="store_true", help="forget the search in DIR and begin anew")
    effort.add_argument("--onnx", action="store_true", help="write an ONNX file too (needs the extra 'onnx')")


def add_fuse_after_run(parser: argparse.ArgumentParser) -> None:
    """Add to ``run`` what it takes to fuse when the jobs are done."""
    group = parser.add_argument_group("fusing", "What 'unified fuse' does, with the jobs that finished and share an input.")
    group.add_argument("--fuse", action="store_true", help="then fuse them: one network for each kind of input, in DIR/fused")
    group.add_argument(
        "--max-drop",
        type=types.drops,
        metavar="DROP[,DROP]",
        help="with --fuse: how much of its score a task may lose (default 0.01)",
    )
    group.add_argument(
        "--fuse-seconds", type=types.seconds, metavar="SECONDS", help="with --fuse: stop training fused models after so long"
    )
    group.add_argument(
        "--fuse-candidates", type=types.positive, metavar="N", help="with --fuse: stop after so many candidates (default 60)"
    )


def check_fuse_after_run(options: argparse.Namespace) -> None:
    """End with a usage error where an option of ``run`` is without effect."""
    given = [name for name in ("max_drop", "fuse_seconds", "fuse_candidates") if getattr(options, name) is not None]
    if given and not options.fuse:
        options.parser.error(f"--{given[0].replace('_', '-')} has no effect without --fuse")


def check_jobs_before_run(options: argparse.Namespace) -> None:
    """Refuse jobs whose results would lie where ``--fuse`` puts what it makes of them, before they are trained."""
    if options.fuse:
        from unified.fusing.naming import check_names

        check_names(options.folders)


def fuse_after_run(options: argparse.Namespace, code: int) -> int:
    """Fuse what a run has trained if ``--fuse`` asks for it, and return the exit code of both: the worse."""
    if not options.fuse or options.dry_run or code not in (0, 3):
        return code
    from unified.fusing.journey import JourneyOptions, fuse_run

    return max(
        code,
        fuse_run(
            JourneyOptions(
                run=options.out,
                thresholds=options.max_drop or (0.01,),
                budget_seconds=options.fuse_seconds,
                candidates=options.fuse_candidates,
                device=options.device,
                threads=options.threads,
                trust=options.trust,
                resume=options.resume,
                as_json=options.json,
                command=("unified", *options.arguments),
            )
        ),
    )


def _fuse(options: argparse.Namespace) -> int:
    if options.resume and options.fresh:
        options.parser.error("--resume goes on with the search in DIR, --fresh forgets it: give one of them")
    from unified.fusing.fuse_command import FuseOptions, fuse_results

    return fuse_results(
        FuseOptions(
            results=tuple(options.results),
            out=options.out,
            thresholds=options.max_drop,
            tasks=options.tasks,
            data=options.data,
            label_free=options.label_free,
            metric=options.metric,
            policy=options.policy,
            preset=options.preset,
            baseline=options.baseline,
            epochs=options.epochs,
            batch_size=options.batch_size,
            seed=options.seed,
            device=options.device,
            threads=options.threads,
            budget_seconds=options.budget_seconds,
            candidates=options.candidates,
            resume=options.resume,
            fresh=options.fresh,
            onnx=options.onnx,
            trust=options.trust,
            as_json=options.json,
            command=("unified", *options.arguments),
        )
    )
