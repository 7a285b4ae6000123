"""The command lines of ``unified convert`` and ``unified restore``. What they do is imported when they are called."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from unified.command_parsers import add_command

CONVERT_END = """\
exit codes:
  0    done: the .umodel trains and evaluates bit for bit as the model does
  1    nothing was written: see the message
  2    the command line is wrong

example:
  unified convert lenet.pt lenet.umodel --input 2,1,28,28"""

RESTORE_END = """\
exit codes:
  0    done
  1    the weights do not fit the class, or it cannot be made: see the message
  2    the command line is wrong

example:
  unified restore results/lenet lenet.py:LeNet --out lenet-trained.pt"""


def add_conversions(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``convert`` and ``restore`` to the commands of ``unified``."""
    _add_convert(commands)
    _add_restore(commands)


def _add_convert(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "Write a model file of your own (.pt, .pth, .pt2) as a .umodel. Its code runs: give no file of somebody else."
    parser = add_command(commands, "convert", _convert, summary, CONVERT_END)
    parser.add_argument("source", type=Path, metavar="IN", help="a whole module, a torch.export archive, or weights alone")
    parser.add_argument("target", type=Path, metavar="OUT", help="the .umodel to write")
    parser.add_argument(
        "--model", metavar="MODEL.py:Class", help="for weights alone: the class that they are of, or a function that makes it"
    )
    _add_arguments(parser)
    parser.add_argument("--data", type=Path, metavar="FILE", help="a dataset whose first samples are the example inputs")
    _add_input(parser, "an example input; repeat it for several")


def _add_restore(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "Put the trained weights of a result back into your own class, strictly, and write it."
    parser = add_command(commands, "restore", _restore, summary, RESTORE_END)
    parser.add_argument("result", type=Path, metavar="RESULT", help="the folder of a finished job, or a .umodel")
    parser.add_argument("model", metavar="MODEL.py:Class", help="your class, or a function that makes the module")
    _add_arguments(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="what to write: .pt or .pth (the whole module), .pt2 or .umodel (default: nothing)",
    )
    _add_input(parser, "for .pt2 and .umodel: an example input (default: of the shapes that the result takes)")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--arguments",
        type=_object,
        dest="model_arguments",
        default={},
        metavar="JSON",
        help="what the class is called with, as '{\"num_classes\": 10}'",
    )


def _add_input(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--input", action="append", default=[], dest="inputs", metavar="[NAME=]SHAPE[:DTYPE]", help=f"{what}, e.g. 2,1,28,28"
    )


def _object(text: str) -> dict[str, Any]:
    wrong = argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    try:
        found = json.loads(text)
    except ValueError:
        raise wrong from None
    if not isinstance(found, dict):
        raise wrong
    return found


def _convert(options: argparse.Namespace) -> int:
    from unified.converting.commands import convert_file

    return convert_file(
        options.source,
        options.target,
        model=options.model,
        arguments=options.model_arguments,
        data=options.data,
        inputs=options.inputs,
    )


def _restore(options: argparse.Namespace) -> int:
    from unified.converting.commands import restore_result

    return restore_result(
        options.result, options.model, arguments=options.model_arguments, out=options.out, inputs=options.inputs
    )
