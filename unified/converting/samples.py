"""Example inputs for an export: shapes given on the command line, or the first samples of a dataset."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from unified.dataset_files import reference
from unified.datasets import load_tensors
from unified.errors import UnifiedError
from unified.fusing.examples import Example, sample
from unified.submission.umodel_format import DTYPES, STORED_DTYPES

NUM_SAMPLES = 2
_SHAPE = re.compile(r"((?P<name>[A-Za-z_]\w*)=)?(?P<sizes>\d+(,\d+)*)(:(?P<dtype>\w+))?", re.ASCII)
_MAX_NUMBERS = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class InputShape:
    """An input as ``[NAME=]SIZE,SIZE,…[:DTYPE]`` says it; the first size is the batch."""

    name: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype


def parse_shape(text: str) -> InputShape:
    """Return the input that a text such as ``"2,1,28,28"`` or ``"input_ids=2,32:int64"`` describes.

    Raises:
        UnifiedError: If it describes none.
    """
    match = _SHAPE.fullmatch(text)
    dtype = (match["dtype"] or "float32") if match else ""
    if match is None or dtype not in STORED_DTYPES:
        types = ", ".join(STORED_DTYPES)
        raise UnifiedError(
            f"expected an input as [NAME=]SIZE,SIZE,…[:DTYPE], e.g. 2,1,28,28 or input_ids=2,32:int64 (DTYPE one of {types}), "
            f"got {text!r}"
        )
    shape = tuple(int(size) for size in match["sizes"].split(","))
    if math.prod(shape) > _MAX_NUMBERS or 0 in shape:
        raise UnifiedError(f"input {text!r}: expected sizes from 1 and at most {_MAX_NUMBERS} numbers in all")
    return InputShape(name=match["name"], shape=shape, dtype=DTYPES[dtype])


def of_shapes(shapes: Sequence[InputShape]) -> Example:
    """Return inputs of these shapes: normal noise, ones for whole numbers, always the same.

    Raises:
        UnifiedError: If some have names and some have none, or two the same.
    """
    names = [shape.name for shape in shapes]
    tensors = [sample(each.shape, each.dtype, torch.Generator().manual_seed(index)) for index, each in enumerate(shapes)]
    if all(name is None for name in names):
        return tensors[0] if len(tensors) == 1 else tuple(tensors)
    if None in names or len({*names}) < len(names):
        raise UnifiedError("expected a name of its own for each input, or for none; write NAME=SIZE,SIZE,…")
    return {str(name): tensor for name, tensor in zip(names, tensors, strict=True)}


def of_dataset(path: Path) -> Example:
    """Return the first samples of a dataset in a tensor file, as a job would be given them.

    Raises:
        InvalidSubmission: If it is none.
    """
    with tempfile.TemporaryDirectory() as cache:
        data = load_tensors(
            reference(path, columns=None, tokenizer=None, max_length=None, cache_dir=Path(cache), job=path.name)
        )
        return data.batch(torch.arange(min(NUM_SAMPLES, len(data))))[0]
