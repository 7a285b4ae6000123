"""The command lines of ``unified variants`` and its verb ``build``. What they do is imported when one is called."""

from __future__ import annotations

import argparse
from pathlib import Path

from unified import argument_types as types
from unified.command_parsers import Commands, add_command
from unified.variants_profile_parser import add_list, add_profile
from unified.variants_select_parser import add_figures, add_select

VARIANTS_END = """\
example:
  unified variants build parent.umodel --data data --out variants"""

BUILD_END = """\
exit codes:
  0    done: the variants are in VARIANTS
  3    some could not be made; the others are in VARIANTS, and the last lines say which are missing and why
  1    nothing was built: see the message
  2    the command line is wrong
  130  interrupted; what was finished by then is in VARIANTS

example:
  unified variants build parent.umodel --data data --out variants --ratios 0,0.3,0.6"""

CRITERIA = ("magnitude", "taylor", "batchnorm")
RATIOS_OF = ("channels", "parameters", "flops")
SYSTEMS = ("multi", "single", "both")


def add_variants(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``variants`` with its verbs to the commands of ``unified``."""
    summary = "Make variants of a multi-task network, measure them, and choose among them."
    parser = commands.add_parser(
        "variants",
        help=summary,
        description=summary,
        epilog=VARIANTS_END,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_build(verbs)
    add_profile(verbs)
    add_list(verbs)
    add_select(verbs)
    add_figures(verbs)


def _add_build(verbs: Commands[argparse.ArgumentParser]) -> None:
    summary = "Make variants: prune a network to several degrees, remove the heads of tasks that are not asked for, fine-tune."
    parser = add_command(verbs, "build", _build, summary, BUILD_END)
    parser.add_argument(
        "parent",
        type=Path,
        metavar="PARENT",
        help="a multi-task network: a .umodel, the result of a job, or what 'unified fuse' or 'unified merge' wrote",
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR|FILE",
        help="samples with labels of every task: a file, or a folder with train, validation and test",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="VARIANTS", help="new folder, or one of variants of this family to add to"
    )
    parser.add_argument("--name", metavar="FAMILY", help="what clients will call it (default: the name of PARENT)")
    _add_which(parser)
    _add_training(parser)
    parser.add_argument("--trust", action="store_true", help="accept a model file that runs its own code when loaded")
    parser.add_argument("--json", action="store_true", help="print every event as a line of JSON, last the variants")


def _add_which(parser: argparse.ArgumentParser) -> None:
    which = parser.add_argument_group("which variants")
    which.add_argument(
        "--ratios",
        type=types.ratios,
        metavar="RATIO,RATIO",
        help="how much to prune (default 0,0.1,…,0.9; of a merged network: its specialised subsets as they are)",
    )
    which.add_argument(
        "--subsets",
        type=types.subsets,
        default="singles+all",
        metavar="singles+all|all|A,B;C",
        help="for which tasks: each alone and all together (default), all subsets, or those given",
    )
    which.add_argument(
        "--systems",
        choices=SYSTEMS,
        metavar="multi|single|both",
        help="made from the multi-task network, from one network for each task trained alone, or both "
        "(default both; of a fused or merged network: multi)",
    )
    which.add_argument(
        "--criterion",
        choices=CRITERIA,
        default="magnitude",
        metavar="NAME",
        help=f"which channels go first: {', '.join(CRITERIA)} (default magnitude)",
    )
    which.add_argument(
        "--ratio-of",
        choices=RATIOS_OF,
        default="channels",
        metavar="channels|parameters|flops",
        help="what a ratio is a share of (default channels, of each layer)",
    )


def _add_training(parser: argparse.ArgumentParser) -> None:
    training = parser.add_argument_group("training")
    training.add_argument(
        "--train-epochs",
        type=types.whole,
        metavar="N",
        help="before pruning; 0 keeps PARENT as it is (default 10; of a fused or merged network: 0)",
    )
    training.add_argument(
        "--finetune-epochs", type=types.whole, default=10, metavar="N", help="after pruning, for each variant (default 10)"
    )
    training.add_argument("--batch-size", type=types.positive, default=64, metavar="N", help="of a training step (default 64)")
    training.add_argument("--lr", type=types.above_zero, default=0.001, metavar="RATE", help="of Adam (default 0.001)")
    training.add_argument(
        "--weights",
        type=types.weights,
        default={},
        metavar="TASK=W,TASK=W",
        help="of the tasks' losses in their sum (default: one over the loss of the best constant answer)",
    )
    training.add_argument("--seed", type=types.whole, default=0, metavar="N", help="of all random numbers (default 0)")
    training.add_argument("--device", default="auto", metavar="auto|cpu|cuda:0", help="where to train (default auto)")
    training.add_argument(
        "--slots",
        default="auto",
        type=types.slots,
        metavar="N|auto",
        help="how many variants train at the same time (default auto: planned, one per GPU)",
    )
    training.add_argument("--threads", type=types.positive, metavar="T", help="CPU threads per slot (default: planned)")


def _build(options: argparse.Namespace) -> int:
    from unified.variants.build_command import BuildOptions, build

    return build(
        BuildOptions(
            parent=options.parent,
            data=options.data,
            out=options.out,
            name=options.name,
            ratios=options.ratios,
            subsets=options.subsets,
            systems=options.systems,
            criterion=options.criterion,
            ratio_of=options.ratio_of,
            train_epochs=options.train_epochs,
            finetune_epochs=options.finetune_epochs,
            batch_size=options.batch_size,
            lr=options.lr,
            weights=options.weights,
            seed=options.seed,
            device=options.device,
            slots=options.slots,
            threads=options.threads,
            trust=options.trust,
            as_json=options.json,
        )
    )
