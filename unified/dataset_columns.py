"""Columns of a Hugging Face dataset as tensors, by one set of rules.

Integers and booleans become int64, floating-point numbers float32; lists and arrays of one shape keep it;
images become float32 in [0, 1], channels first; class labels and text labels become int64.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import datasets
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from unified.dataset_problems import READ_ERRORS, Inputs, data_problem, reason, refusal
from unified.dataset_recipe import Columns, Conventions, column_names
from unified.errors import InvalidSubmission

ROWS_AT_ONCE = 1000


def check_columns(dataset: datasets.Dataset, columns: Columns) -> None:
    """Raise InvalidSubmission for every column that is missing or has gaps."""
    problems = []
    for name in column_names(columns):
        if name not in dataset.column_names:
            given = f"the columns {dataset.column_names}"
            remedy = "correct data.columns"
            problems.append(data_problem(f"a column {name!r}", given, remedy, field="columns"))
        elif gaps := dataset.data.column(name).null_count:
            first = dataset.data.column(name).is_null().index(True).as_py()
            given = f"{gaps} missing values, the first in row {first}"
            problems.append(data_problem("a value in every row", given, "fill or drop them", field=_field(name)))
    if problems:
        raise InvalidSubmission(problems)


def input_tensors(dataset: datasets.Dataset, columns: Columns) -> Inputs:
    """Return the inputs ``(rows, …)``: one column, several as float32 ``(rows, columns)``, or by name."""
    inputs = columns.inputs
    if isinstance(inputs, str):
        return column_tensor(dataset, inputs)
    if isinstance(inputs, dict):
        return {name: column_tensor(dataset, column) for name, column in inputs.items()}
    stacked = [column_tensor(dataset, name) for name in inputs]
    for name, tensor in zip(inputs, stacked, strict=True):
        if tensor.dim() != 1:
            remedy = "name a column of arrays alone, or give each input a name with a mapping"
            raise refusal("one number in each row", f"shape {tuple(tensor.shape[1:])}", remedy, field=_field(name))
    return torch.stack([tensor.to(torch.float32) for tensor in stacked], dim=1)


def target_tensor(
    dataset: datasets.Dataset, name: str, conventions: Conventions | None
) -> tuple[torch.Tensor, tuple[str, ...] | None]:
    """Return the targets ``(rows, …)`` and the text of each class, if they have one.

    Args:
        dataset: The rows.
        name: The column.
        conventions: Of the training data, when this is test data: texts are numbered as there.
    """
    feature = dataset.features[name]
    settled = None if conventions is None else conventions.labels
    if isinstance(feature, datasets.ClassLabel):
        numbers = column_tensor(dataset, name)
        names = tuple(feature.names or ())
        if settled is None or settled == names:
            return numbers, names
        texts = [names[n] if 0 <= n < len(names) else str(n) for n in numbers.tolist()]
        return _numbered(texts, settled, name), settled
    if not is_text(dataset, name):
        return column_tensor(dataset, name), settled
    if conventions is not None and settled is None:
        remedy = "give both data sets' targets as text, or both as numbers"
        raise refusal("numbers, as in the training data", "text", remedy, field=_field(name))
    texts = column_texts(dataset, name)
    labels = settled or tuple(sorted(set(texts)))
    return _numbered(texts, labels, name), labels


def is_text(dataset: datasets.Dataset, name: str) -> bool:
    """Whether the column holds one text in each row."""
    return str(getattr(dataset.features[name], "dtype", "")) in ("string", "large_string")


def column_texts(dataset: datasets.Dataset, name: str) -> list[str]:
    """Return all texts of the column."""
    # pyrefly: ignore[missing-attribute]  # a Dataset selects columns as a Dataset
    return [text for batch in dataset.select_columns([name]).iter(ROWS_AT_ONCE) for text in batch[name]]


def column_tensor(dataset: datasets.Dataset, name: str) -> torch.Tensor:
    """Return one column of numbers, of lists or arrays of one shape, or of images, as ``(rows, …)``.

    Raises:
        InvalidSubmission: The column holds something else, or rows of different shapes.
    """
    feature = dataset.features[name]
    if isinstance(feature, datasets.Image):
        return _filled(_image_chunks(dataset, name), len(dataset), torch.float32, name)
    dtype = _number_dtype(feature)
    if dtype is None:
        text = is_text(dataset, name)
        remedy = "name a tokenizer folder in data.tokenizer" if text else "convert the column, or name another"
        raise refusal("numbers, arrays or images", "text" if text else f"{feature}", remedy, field=_field(name))
    batches = dataset.with_format("numpy", columns=[name]).iter(ROWS_AT_ONCE)
    # pyrefly: ignore[bad-index]  # each batch is a dict of columns
    return _filled((batch[name] for batch in batches), len(dataset), dtype, name)


def _number_dtype(feature: object) -> torch.dtype | None:
    """Return what the innermost numbers of a feature become, None if they are none."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    kind = str(getattr(feature, "dtype", ""))
    if kind.startswith(("int", "uint", "bool")) and kind != "uint64":
        return torch.int64
    return torch.float32 if kind in ("float16", "float32", "float64") else None


def _filled(chunks: Iterator[np.ndarray], num_rows: int, dtype: torch.dtype, name: str) -> torch.Tensor:
    """Return the chunks ``(some rows, …)`` one below the other, refusing rows of different shapes."""
    filled: torch.Tensor | None = None
    start = 0
    for chunk in chunks:
        if filled is None and chunk.dtype != object:
            filled = torch.empty((num_rows, *chunk.shape[1:]), dtype=dtype)
        if filled is None or chunk.dtype == object or chunk.shape[1:] != filled.shape[1:]:
            remedy = "pad or crop the rows to one shape; for lists of tokens name a tokenizer and the text instead"
            given = f"different shapes between rows {start} and {start + len(chunk) - 1}"
            raise refusal("rows of one shape", given, remedy, field=_field(name))
        if chunk.dtype.kind == "f" and not dtype.is_floating_point:
            # numpy turns lists of integers with gaps into floating-point numbers
            given = f"missing values between rows {start} and {start + len(chunk) - 1}"
            raise refusal("a value in every place", given, "fill or drop them", field=_field(name))
        filled[start : start + len(chunk)] = torch.from_numpy(np.array(chunk))
        start += len(chunk)
    assert filled is not None, "an empty dataset is refused before"
    return filled


def _image_chunks(dataset: datasets.Dataset, name: str) -> Iterator[np.ndarray]:
    # Decoded here and not by the library, which would open any path or address that a row may hold.
    encoded = dataset.cast_column(name, datasets.Image(decode=False)).select_columns([name])
    for row, value in enumerate(encoded):
        yield _image(value[name], row, name)[None]


def _image(value: dict[str, object], row: int, name: str) -> np.ndarray:
    """Return an image as float32 ``(channels, height, width)`` in [0, 1]: 1 channel if grey, otherwise 3."""
    content = value.get("bytes")
    if not isinstance(content, bytes):
        remedy = "write the dataset with save_to_disk, which stores the images themselves"
        raise refusal("the image itself", f"only a path in row {row}", remedy, field=_field(name))
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
                raise ValueError(f"pixels of mode {image.mode}, not of 8 bits")
            pixels = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, *READ_ERRORS) as error:
        given = f"{reason(error)} in row {row}"
        raise refusal("an image of 8 bits", given, "convert or drop it", field=_field(name)) from None
    channels_last = pixels if pixels.ndim == 3 else pixels[:, :, None]
    return channels_last.transpose(2, 0, 1).astype(np.float32) / np.float32(255)


def _numbered(texts: list[str], labels: tuple[str, ...], name: str) -> torch.Tensor:
    numbers = {label: number for number, label in enumerate(labels)}
    unknown = sorted(set(texts) - set(numbers))
    if unknown:
        expected = f"the labels of the training data, {list(labels[:8])}"
        raise refusal(expected, f"also {unknown[:8]}", "drop these rows, or name another column", field=_field(name))
    return torch.tensor([numbers[text] for text in texts], dtype=torch.int64)


def _field(name: str) -> str:
    return f"column {name!r}"
