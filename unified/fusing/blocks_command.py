"""What ``unified inspect --blocks`` does: takes a model apart as fusion would, and says what each part is and costs."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.text import Text
from torch import Tensor, nn

from fusion.graph.block import Block, BlockSequence
from fusion.graph.errors import FusionError
from fusion.graph.feature import Feature
from fusion.graph.parse import parse
from fusion.search.flops import block_flops
from fusion.search.timer import Marks, Timing, evaluating, time_stages
from unified.admission import ModelForm
from unified.dataset_files import reference
from unified.datasets import load_tensors
from unified.errors import InvalidSubmission, Problem, UnifiedError
from unified.fusing.rows import map_inputs
from unified.fusing.sources import RESULT, read_result
from unified.fusing.views import cost_text, plain_table
from unified.job import JobSpec
from unified.listeners import json_line
from unified.quantities import MISSING, count_text
from unified.run_command import EXIT_DONE
from unified.submission.models import load_model, recognise
from unified.submission.umodel_format import DTYPES
from unified.submission.umodel_read import read_manifest
from unified.terminal import line_writer, make_console, show

MEASURE_SECONDS = 3.0
NUM_EXAMPLES = 2

Example = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


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
    if path.is_file():
        file, spec = path, None
    elif (path / RESULT).is_file():
        job = read_result(path)
        file, spec = job.model, job.spec
    elif (path / "job.json").is_file():
        spec = JobSpec.read(path / "job.json")
        assert isinstance(spec.model, str), "a job.json holds a path"
        file = path / spec.model
    else:
        raise InvalidSubmission([_nothing_there(path)])
    ref = recognise(file, job=path.name, trust=trust, staged=False)
    model = load_model(ref, job=path.name)
    if ref.form is ModelForm.UMODEL:
        return model, umodel_example(file)
    return model, _example_of_data(path, spec)


def umodel_example(path: Path) -> Example:
    """Return samples of the shapes that an archive takes: normal noise, and zeros where it wants whole numbers."""
    generator = torch.Generator().manual_seed(0)
    inputs: dict[str, Tensor] = {}
    records = read_manifest(path).inputs
    for record in records:
        dtype, shape = DTYPES[record.dtype], (NUM_EXAMPLES, *record.shape)
        is_float = dtype.is_floating_point
        inputs[record.name] = torch.randn(shape, generator=generator).to(dtype) if is_float else torch.ones(shape, dtype=dtype)
    if any(record.position is None for record in records):
        return inputs
    values = tuple(inputs[record.name] for record in sorted(records, key=lambda record: record.position or 0))
    return values[0] if len(values) == 1 else values


def _example_of_data(path: Path, spec: JobSpec | None) -> Example:
    if spec is None:
        problem = _nothing_there(path, "a .umodel, or a job folder with data: this file does not say what it takes")
        raise InvalidSubmission([problem])
    if (path / RESULT).is_file():
        train = read_result(path).train
        if train is None:
            raise InvalidSubmission([_nothing_there(path, "a result that says where its data was")])
        inputs = load_tensors(train).inputs
        return map_inputs(inputs, lambda tensor: tensor[:NUM_EXAMPLES].clone())
    assert isinstance(spec.data.train, str), "a job.json holds a path"
    tokenizer = None if spec.data.tokenizer is None else path / spec.data.tokenizer
    with tempfile.TemporaryDirectory() as cache:
        data = load_tensors(
            reference(
                path / spec.data.train,
                columns=spec.data.columns,
                tokenizer=tokenizer,
                max_length=spec.data.max_length,
                cache_dir=Path(cache),
                job=spec.name,
            )
        )
        return map_inputs(data.inputs, lambda tensor: tensor[:NUM_EXAMPLES].clone())


def _nothing_there(path: Path, expected: str = "a job folder, a result of one, or a .umodel") -> Problem:
    given = "something else" if path.exists() else "nothing there"
    return Problem(code="E-FUSE", job=path.name, field=str(path), expected=expected, given=given, remedy="check the path")
