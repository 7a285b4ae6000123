"""From what a job names to data ready to be mapped, known by its content: equal data is one dataset.

Tensor files are taken where they lie. Everything else is converted once, into a tensor file in the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError

from unified.admission import DatasetRef
from unified.dataset_index import DatasetIndex, file_stamp
from unified.dataset_problems import (
    READ_ERRORS,
    Inputs,
    blamed_on,
    form_problems,
    named_tensors,
    reason,
    refusal,
    value_problems,
)
from unified.dataset_recipe import TABLE_SUFFIXES, Columns, Conventions, Recipe
from unified.errors import InvalidSubmission
from unified.tensor_files import SUFFIXES, content_key, is_legacy, map_tensors, read_metadata, unfinished_prefix, write_tensors

#: Part of the name of every converted file: to be raised when a conversion gives other tensors than before.
_CONVERSION = "unified conversion 1"


def reference(
    source: Path,
    *,
    columns: Columns | None,
    tokenizer: Path | None,
    max_length: int | None,
    cache_dir: Path,
    job: str,
    train: DatasetRef | None = None,
) -> DatasetRef:
    """Return the dataset at ``source``, checked, hashed and ready to be mapped.

    The second time that an unchanged file is named, nothing is read. Equal data under another name, or in
    another container, gives the same key, and the path of the file that came first, so that workers share its
    pages.

    Args:
        source: A tensor file (``.pt``, ``.pth``, ``.safetensors``), a table (``.parquet``, ``.csv``,
            ``.tsv``, ``.json``, ``.jsonl``) or a folder from ``save_to_disk``, of one dataset or of splits.
            A ``.tsv`` has no quoting. Columns named by numbers only (``"0"``, ``"1"``, …) mean a CSV or TSV
            file without a header line, unless its first line holds these very names.
        columns: Which columns of a table are inputs and targets; not used for tensor files.
        tokenizer: Folder of the tokenizer for columns of texts.
        max_length: Number of tokens to pad and cut texts to; None for the longest text's.
        cache_dir: Where converted data and what is known of files are kept, from run to run.
        job: Whose data it is, for messages.
        train: None for training data. For test data, its training data: texts are numbered and padded as
            there, and of a folder with splits 'test' is taken, or else 'validation', instead of 'train'.

    Raises:
        InvalidSubmission: With everything that is wrong with the data, at once where possible.
    """
    with blamed_on(job, "data.train" if train is None else "data.test"):
        index = DatasetIndex(cache_dir / "known")
        if source.is_file() and source.suffix.lower() in SUFFIXES:
            return _refer(_mappable(source, cache_dir, index), str(source), index)
        _check_table(source, columns)
        assert columns is not None, "checked above"
        recipe = Recipe(
            source=source,
            columns=columns,
            tokenizer=tokenizer,
            max_length=max_length,
            train=None if train is None else conventions_of(train),
        )
        return _refer(_converted(recipe, cache_dir, index), str(source), index)


def reference_tensors(inputs: Inputs, targets: torch.Tensor, *, source: str, cache_dir: Path, job: str) -> DatasetRef:
    """Return the dataset of tensors that a caller holds in memory, written to the cache unless it is there.

    Args:
        inputs: ``(samples, …)``, or such a tensor under the name of each input.
        targets: ``(samples, …)``.
        source: What to call the data in messages, e.g. ``"data.train"``.
        cache_dir: As for :func:`reference`.
        job: Whose data it is, for messages.

    Raises:
        InvalidSubmission: With everything that is wrong with the data.
    """
    inputs = inputs.detach().cpu() if isinstance(inputs, torch.Tensor) else {k: t.detach().cpu() for k, t in inputs.items()}
    targets = targets.detach().cpu()
    with blamed_on(job, source):
        _check_tensors(inputs, targets)
        index = DatasetIndex(cache_dir / "known")
        path = cache_dir / f"{content_key(inputs, targets)}.safetensors"
        if index.recall("tensors", path) is None:
            write_tensors(path, inputs, targets, {})
        return _refer(path, source, index)


def conventions_of(ref: DatasetRef) -> Conventions:
    """Return the class texts and padded length that the conversion of ``ref`` settled, if there was one."""
    return _conventions(ref.path)


def _refer(path: Path, source: str, index: DatasetIndex) -> DatasetRef:
    known = index.recall("tensors", path)
    if known is None:
        stamp = file_stamp(path)
        inputs, targets = map_tensors(path)
        _check_tensors(inputs, targets)
        tensors = named_tensors(inputs, targets).values()
        known = {
            "key": content_key(inputs, targets),
            "num_samples": len(targets),
            "nbytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        }
        index.remember("tensors", path, known, stamp)
    key = str(known["key"])
    return DatasetRef(
        path=index.first_file(f"{key} {_conventions(path)}", path),
        key=key,
        num_samples=int(known["num_samples"]),
        nbytes=int(known["nbytes"]),
        source=source,
    )


def _check_tensors(inputs: Inputs, targets: torch.Tensor) -> None:
    problems = form_problems(inputs, targets) or value_problems(inputs, targets)
    if problems:
        raise InvalidSubmission(problems)


def _check_table(source: Path, columns: Columns | None) -> None:
    if not source.is_file() and not source.is_dir():
        remedy = "correct the path; it is relative to the job's folder"
        raise refusal("a file or folder of data", f"nothing at {str(source)!r}", remedy)
    if source.is_file() and source.suffix.lower() not in TABLE_SUFFIXES:
        expected = f"a file that ends in {', '.join([*SUFFIXES, *TABLE_SUFFIXES])}, or a folder from save_to_disk"
        raise refusal(expected, repr(source.name), "convert it to one of these forms")
    if columns is None:
        remedy = 'add "columns": {"inputs": "…", "targets": "…"} to "data"'
        raise refusal("the names of the columns to train on", "none", remedy, field="columns")


def _mappable(source: Path, cache_dir: Path, index: DatasetIndex) -> Path:
    """Return a tensor file itself, or if it cannot be mapped, its copy in a form that can."""
    try:
        if not is_legacy(source):
            return source
    except OSError as error:
        raise refusal("a file that can be read", reason(error), "check its permissions") from None
    digest = hashlib.sha256(f"{_CONVERSION} legacy {_file_digest(source, index)}".encode()).hexdigest()

    def convert() -> tuple[Inputs, torch.Tensor, Conventions]:
        return (*map_tensors(source), Conventions())

    return _cached(cache_dir / f"{digest}.safetensors", convert, index)


def _converted(recipe: Recipe, cache_dir: Path, index: DatasetIndex) -> Path:
    """Return the tensor file of a table, made now unless it was before."""

    def convert() -> tuple[Inputs, torch.Tensor, Conventions]:
        # takes seconds to import, and tensor files do without
        from unified.dataset_huggingface import convert as convert_table

        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix=unfinished_prefix(os.getpid())) as scratch:
            return convert_table(recipe, Path(scratch))

    return _cached(cache_dir / f"{_recipe_digest(recipe, index)}.safetensors", convert, index)


def _cached(path: Path, convert: Callable[[], tuple[Inputs, torch.Tensor, Conventions]], index: DatasetIndex) -> Path:
    if index.recall("tensors", path) is None:
        inputs, targets, conventions = convert()
        _check_tensors(inputs, targets)
        metadata = {"labels": json.dumps(conventions.labels), "length": json.dumps(conventions.length)}
        write_tensors(path, inputs, targets, metadata)
    return path


def _conventions(path: Path) -> Conventions:
    try:
        metadata = read_metadata(path)
        labels, length = json.loads(metadata["labels"]), json.loads(metadata["length"])
    except (SafetensorError, *READ_ERRORS):
        return Conventions()  # a file of the user's own
    return Conventions(labels=None if labels is None else tuple(map(str, labels)), length=length)


def _recipe_digest(recipe: Recipe, index: DatasetIndex) -> str:
    """Return what names the result of a conversion: content of all files read, and all settings."""
    tokenizer = recipe.tokenizer if recipe.tokenizer is not None and recipe.tokenizer.is_dir() else None
    settings = [
        _CONVERSION,
        _digest(recipe.source, index),
        recipe.source.suffix.lower(),
        recipe.columns.inputs,
        recipe.columns.targets,
        None if tokenizer is None else _digest(tokenizer, index),
        recipe.max_length,
        None if recipe.train is None else [recipe.train.labels, recipe.train.length],
    ]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def _digest(path: Path, index: DatasetIndex) -> object:
    if path.is_file():
        return _file_digest(path, index)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return [[file.relative_to(path).as_posix(), _file_digest(file, index)] for file in files]


def _file_digest(path: Path, index: DatasetIndex) -> str:
    """Return the SHA-256 of a file's bytes."""
    known = index.recall("bytes", path)
    if known is not None:
        return str(known["sha256"])
    stamp = file_stamp(path)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise refusal("files that can be read", reason(error), "check their permissions", field=path.name) from None
    index.remember("bytes", path, {"sha256": digest}, stamp)
    return digest
