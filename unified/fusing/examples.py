"""Where a finished job, a job folder or a model file keeps its model, and samples that the model takes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unified.dataset_files import reference
from unified.dataset_problems import Inputs
from unified.datasets import load_tensors
from unified.errors import InvalidSubmission, Problem
from unified.fusing.rows import map_inputs
from unified.fusing.sources import RESULT, read_result
from unified.job import JobSpec
from unified.job_parts import ArchitectureSpec
from unified.submission.umodel_format import DTYPES
from unified.submission.umodel_read import read_manifest

Example = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model that somebody named.

    Attributes:
        name: Of the job, or the file's.
        path: As it was given: a result, a job folder or a file.
        file: The model's.
        spec: The job, None for a mere file.
    """

    name: str
    path: Path
    file: Path
    spec: JobSpec | None

    @property
    def architecture(self) -> ArchitectureSpec | None:
        """What the job declares of a file of weights."""
        return None if self.spec is None else self.spec.architecture


def find_model(path: Path) -> ModelSource:
    """Find the model of a result, a job folder or a file.

    Raises:
        InvalidSubmission: If there is none.
    """
    if path.is_file():
        name = path.parent.resolve().name if path.stem == "model" else path.stem
        return ModelSource(name=name, path=path, file=path, spec=None)
    if (path / RESULT).is_file():
        job = read_result(path)
        return ModelSource(name=job.name, path=path, file=job.model, spec=job.spec)
    if (path / "job.json").is_file():
        spec = JobSpec.read(path / "job.json")
        assert isinstance(spec.model, str), "a job.json holds a path"
        return ModelSource(name=spec.name, path=path, file=path / spec.model, spec=spec)
    raise InvalidSubmission([nothing_there(path)])


def umodel_example(path: Path, count: int, seed: int = 0) -> Example:
    """Return samples of the shapes that an archive takes: normal noise, and ones where it wants whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    inputs: dict[str, Tensor] = {}
    records = read_manifest(path).inputs
    for record in records:
        inputs[record.name] = sample((count, *record.shape), DTYPES[record.dtype], generator)
    if any(record.position is None for record in records):
        return inputs
    values = tuple(inputs[record.name] for record in sorted(records, key=lambda record: record.position or 0))
    return values[0] if len(values) == 1 else values


def sample(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return normal noise of a shape, or ones where whole numbers are wanted."""
    if not dtype.is_floating_point:
        return torch.ones(shape, dtype=dtype)
    return torch.randn(shape, generator=generator).to(dtype)


def example_of_data(source: ModelSource, count: int) -> Inputs:
    """Return the first samples that a job was trained on, at most ``count``.

    Raises:
        InvalidSubmission: If there are none where they were, or the source is a mere file.
    """
    path, spec = source.path, source.spec
    if spec is None:
        problem = nothing_there(path, "a .umodel, or a job folder with data: this file does not say what it takes")
        raise InvalidSubmission([problem])
    if (path / RESULT).is_file():
        train = read_result(path).train
        if train is None:
            raise InvalidSubmission([nothing_there(path, "a result that says where its data was")])
        return map_inputs(load_tensors(train).inputs, lambda tensor: tensor[:count].clone())
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
        return map_inputs(data.inputs, lambda tensor: tensor[:count].clone())


def nothing_there(path: Path, expected: str = "a job folder, a result of one, or a .umodel") -> Problem:
    """Return the problem of a path that leads to no model."""
    given = "something else" if path.exists() else "nothing there"
    return Problem(code="E-FUSE", job=path.name, field=str(path), expected=expected, given=given, remedy="check the path")
