"""What a stack leaves on disk: an archive that needs torch alone, and a description of its members beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from unified.answering.members import Answerer
from unified.results import write_json
from unified.summary import finite, versions


@contextmanager
def written(program: ExportedProgram, out: Path | None) -> Iterator[nn.Module]:
    """Write an archive and give the module read back from it; the file takes its place once all went well.

    Args:
        program: Of a stack.
        out: Where to; None writes nothing.
    """
    if out is None:
        yield program.module()
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.stem}.{os.getpid()}.pt2")
    try:
        torch.export.save(program, partial)
        yield torch.export.load(partial).module()
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def write_description(
    out: Path, members: Sequence[Answerer], inputs: Any, tensors: Mapping[str, Tensor], report: Mapping[str, Any]
) -> None:
    """Write what is to be known of an archive beside it.

    Args:
        out: The archive.
        members: In order.
        inputs: A batch of one member.
        tensors: All members', by name.
        report: What was measured.
    """
    if isinstance(inputs, dict):
        given = list(inputs.items())
    else:
        given = [(None, value) for value in ([inputs] if isinstance(inputs, Tensor) else inputs)]  # by position
    content = {
        "format": 1,
        "members": [
            {"name": each.name, "file": None if each.source is None else str(each.source.file), "sha256": each.sha256}
            for each in members
        ],
        "inputs": [
            {"name": name, "dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape[1:])}
            for name, value in given
        ],
        "tensors": {name: list(value.shape) for name, value in tensors.items()},
        **report,
        "versions": versions(),
    }
    write_json(out.with_suffix(".json"), finite(content))
