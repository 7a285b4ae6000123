"""What ``unified inspect --blocks`` does: takes a model apart as fusion would, and says what each part is and costs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text
from torch import nn

from fusion.graph.block import Block, BlockSequence
from fusion.graph.errors import FusionError
from fusion.graph.feature import Feature
from fusion.graph.parse import parse
from fusion.search.flops import block_flops
from fusion.timer import Marks, Timing, evaluating, time_stages
from unified.admission import ModelForm
from unified.errors import UnifiedError
from unified.fusing.examples import Example, example_of_data, find_model, umodel_example
from unified.fusing.views import cost_text, plain_table
from unified.listeners import json_line
from unified.quantities import MISSING, count_text
from unified.run_command import EXIT_DONE
from unified.submission.models import load_model, recognise
from unified.terminal import line_writer, make_console, show

MEASURE_SECONDS = 3.0
NUM_EXAMPLES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRow:
    """One line of the table.

    Attributes:
        index: From 0.
        name: Module path that it covers.
        kind: Its heaviest operation.
        input: What it takes.
        output: What it makes; None for the last, whose output is the model's own.
        parameters: Number of them.
        flops: Per sample.
        timing: Of one sample.
    """

    index: int
    name: str
    kind: str
    input: Feature
    output: Feature | None
    parameters: int
    flops: int
    timing: Timing

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain JSON data."""
        return {
            "index": self.index,
            "name": self.name,
            "kind": self.kind,
            "input": feature_text(self.input),
            "output": None if self.output is None else feature_text(self.output),
            "parameters": self.parameters,
            "flops": self.flops,
            "latency_seconds": self.timing.median_seconds,
            "latency_iqr_seconds": self.timing.iqr_seconds,
        }


def inspect_blocks(path: Path, *, trust: bool, as_json: bool) -> int:
    """Print the blocks of a model and return the exit code.

    Args:
        path: A job folder, a result, or a ``.umodel``.
        trust: Whether a model file that runs code when it is loaded is accepted.
        as_json: Print one line of JSON.

    Raises:
        InvalidSubmission: If there is no model, or it is damaged.
        UnifiedError: If it cannot be taken apart; the message says why.
    """
    model, example = model_and_example(path, trust=trust)
    try:
        sequence = parse(model.eval(), example, name=path.stem if path.is_file() else path.name)
        rows = block_rows(sequence, example)
    except FusionError as error:
        raise UnifiedError(str(error)) from error
    if as_json:
        content = {"model": sequence.name, "blocks": [row.to_json() for row in rows], "notes": list(sequence.notes)}
        line_writer(sys.stdout)(json_line(content))
    else:
        show(make_console(), blocks_table(rows, sequence.notes))
    return EXIT_DONE


def block_rows(sequence: BlockSequence, example: Example) -> list[BlockRow]:
    """Measure each block on one sample, in turns with nothing else."""
    inputs = sequence.signature.flatten(example)
    flops = block_flops(sequence, inputs)
    one = [tensor[:1] for tensor in inputs]
    blocks = [block for block in sequence.blocks if isinstance(block, Block)]

    def run(marks: Marks) -> None:
        feature = one[sequence.signature.primary]
        marks.mark()
        for block in blocks:
            feature = block(feature, *(one[position] for position in block.needs))
            marks.mark()

    with evaluating(sequence):
        [run_timing] = time_stages([run], max_seconds=MEASURE_SECONDS)
    return [
        BlockRow(
            index=block.index,
            name=block.name,
            kind=block.op_type,
            input=block.input,
            output=block.output,
            parameters=block.capacity,
            flops=count,
            timing=timing,
        )
        for block, count, timing in zip(blocks, flops, run_timing.stages, strict=True)
    ]


def blocks_table(rows: list[BlockRow], notes: tuple[str, ...]) -> RenderableType:
    """Return the table that people see, and the notes below it."""
    table = plain_table("#", "block", "kind", "takes", "makes", "parameters", "FLOPs", "latency", "spread")
    for column in table.columns[1:5]:
        column.justify = "left"
    for row in rows:
        table.add_row(
            str(row.index),
            Text(row.name),
            row.kind,
            feature_text(row.input),
            MISSING if row.output is None else feature_text(row.output),
            count_text(row.parameters),
            count_text(row.flops),
            cost_text(row.timing.median_seconds, "latency"),
            cost_text(row.timing.iqr_seconds, "latency"),
        )
    total = sum(row.timing.median_seconds for row in rows)
    table.add_row(
        "", "all", "", "", "", count_text(sum(r.parameters for r in rows)), count_text(sum(r.flops for r in rows)),
        cost_text(total, "latency"), "",
    )  # fmt: skip
    return Group(table, *(Text(f"note: {note}") for note in notes))


def feature_text(feature: Feature) -> str:
    """Spell a feature.

    >>> from fusion.graph.feature import Layout
    >>> feature_text(Feature((16, 8, 8), Layout.CHW))
    '16x8x8 chw'
    """
    kind = "" if feature.dtype == "float32" else f" {feature.dtype}"
    return f"{'x'.join(map(str, feature.shape))} {feature.layout}{kind}"


def model_and_example(path: Path, *, trust: bool) -> tuple[nn.Module, Example]:
    """Return a model and a few samples that it takes.

    Raises:
        InvalidSubmission: If there is none, or it needs trust it does not have.
    """
    source = find_model(path)
    ref = recognise(source.file, job=path.name, trust=trust, staged=False, architecture=source.architecture)
    model = load_model(ref, job=path.name)
    if ref.form is ModelForm.UMODEL:
        return model, umodel_example(source.file, NUM_EXAMPLES)
    return model, example_of_data(source, NUM_EXAMPLES)
