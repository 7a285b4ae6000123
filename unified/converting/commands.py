"""What ``unified convert`` and ``unified restore`` do."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unified.converting.converting import convert
from unified.converting.own_code import build_own
from unified.converting.restoring import example_of_result, restore
from unified.converting.samples import Example, of_dataset, of_shapes, parse_shape
from unified.errors import UnifiedError
from unified.memory import count_parameters
from unified.quantities import bytes_text, count_text
from unified.submission.umodel_write import export
from unified.terminal import line_writer

WRITTEN = (".pt", ".pth", ".pt2", ".umodel")


def convert_file(
    src: Path,
    dst: Path,
    *,
    model: str | None,
    arguments: Mapping[str, Any],
    data: Path | None,
    inputs: Sequence[str],
) -> int:
    """Convert a file and say what was written.

    Raises:
        UnifiedError: If it cannot be done.
    """
    own = None if model is None else build_own(model, arguments)
    convert(src, dst, example_inputs=_example(data, inputs), model=own)
    line_writer(sys.stdout)(f"{dst}: {bytes_text(dst.stat().st_size)}, trains and evaluates bit for bit as {src.name} does")
    return 0


def restore_result(result: Path, target: str, *, arguments: Mapping[str, Any], out: Path | None, inputs: Sequence[str]) -> int:
    """Restore a result into the owner's class, write it where asked, and say so.

    Raises:
        UnifiedError: If it does not fit, or cannot be written.
    """
    if out is not None and out.suffix not in WRITTEN:
        raise UnifiedError(f"expected a file that ends in {', '.join(WRITTEN)}, got {out.name!r}")
    say = line_writer(sys.stdout)
    pt2 = out if out is not None and out.suffix == ".pt2" else None
    example = _example(None, inputs)
    model = restore(build_own(target, arguments), result, pt2=pt2, example_inputs=example)
    names = len(model.state_dict())
    say(f"{target}: {names} tensors, {count_text(count_parameters(model))} parameters, all as trained")
    if out is not None:
        if pt2 is None:
            _write(model, out, result, example)
        say(f"{out}: {bytes_text(out.stat().st_size)}")
    return 0


def _write(model: nn.Module, out: Path, result: Path, example: Example | None) -> None:
    if out.suffix in {".pt", ".pth"}:
        torch.save(model, out)
        return
    export(model, example_of_result(result) if example is None else example, out)


def _example(data: Path | None, inputs: Sequence[str]) -> Example | None:
    if data is not None and inputs:
        raise UnifiedError("give --data or --input, not both")
    if data is not None:
        return of_dataset(data)
    return of_shapes([parse_shape(text) for text in inputs]) if inputs else None
