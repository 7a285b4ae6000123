"""Hugging Face datasets as tensors: folders from ``save_to_disk``, Parquet, CSV, TSV and JSON files.

Nothing here reaches the network, and no code of a dataset or of a tokenizer is run.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import huggingface_hub.constants
import pandas as pd
import pyarrow.parquet as pq
import torch
from datasets.table import table_cast

from unified.dataset_columns import check_columns, input_tensors, target_tensor
from unified.dataset_problems import READ_ERRORS, Inputs, reason, refusal
from unified.dataset_recipe import Columns, Conventions, Recipe, column_names


def convert(recipe: Recipe, scratch: Path) -> tuple[Inputs, torch.Tensor, Conventions]:
    """Return ``(inputs, targets, conventions)`` of a source. ``scratch`` is a folder for this call alone.

    Raises:
        InvalidSubmission: The source or the tokenizer cannot be read, or a column is missing or no numbers.
    """
    with _offline():
        dataset = _open(recipe, scratch).with_format(None)
        if not len(dataset):
            raise refusal("at least 1 sample", "0 rows", "check how the data was written")
        check_columns(dataset, recipe.columns)
        targets, labels = target_tensor(dataset, recipe.columns.targets, recipe.train)
        if recipe.tokenizer is None:
            return input_tensors(dataset, recipe.columns), targets, Conventions(labels=labels)
        inputs, length = _encode(dataset, recipe, recipe.tokenizer)
        return inputs, targets, Conventions(labels=labels, length=length)


def _encode(dataset: datasets.Dataset, recipe: Recipe, tokenizer: Path) -> tuple[dict[str, torch.Tensor], int]:
    # transformers takes seconds to import, and numbers do without
    from unified.dataset_text import encode, load_tokenizer

    names = [recipe.columns.inputs] if isinstance(recipe.columns.inputs, str) else recipe.columns.inputs
    if isinstance(names, dict) or len(names) > 2:
        remedy = "leave out data.tokenizer for columns of numbers"
        expected = "one column of texts, or a list of two, with a tokenizer"
        raise refusal(expected, f"{names}", remedy, field="columns.inputs")
    length = recipe.max_length or (recipe.train.length if recipe.train else None)
    return encode(dataset, names, load_tokenizer(tokenizer), length)


def _open(recipe: Recipe, scratch: Path) -> datasets.Dataset:
    source = recipe.source
    if source.is_dir():
        return _open_folder(source, "train" if recipe.train is None else "test")
    suffix = source.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            return _open_table(source, recipe.columns, "," if suffix == ".csv" else "\t")
        if suffix == ".parquet":
            return _open_parquet(source, recipe.columns)
        _refuse_other_than_text(source)
        return datasets.Dataset.from_json(str(source), cache_dir=str(scratch))
    except (datasets.exceptions.DatasetsError, csv.Error, *READ_ERRORS) as error:
        given = reason(error.__cause__ or error)
        remedy = "check that the file is whole and that its name ends as its format does"
        raise refusal(f"a {suffix[1:]} file with a table", given, remedy) from None


def _open_parquet(path: Path, columns: Columns) -> datasets.Dataset:
    """Read the columns of a Parquet file that are needed, into memory, which is limited where a disk is not.

    A few bytes of such a file may stand for billions of rows.
    """
    with pq.ParquetFile(path, memory_map=True) as file:
        names = column_names(columns)
        table = file.read(columns=names if set(names) <= set(file.schema_arrow.names) else None)
    return datasets.Dataset(table_cast(table, datasets.Features.from_arrow_schema(table.schema).arrow_schema))


def _refuse_other_than_text(path: Path) -> None:
    """Refuse a file that the library would unpack, and a path that it would take for the pattern of several files."""
    if "::" in str(path) or any(mark in str(path) for mark in "*?["):
        raise refusal("a path without any of * ? [ ::", repr(str(path)), "rename the file or its folder")
    with path.open("rb") as file:
        start = file.read(1 << 16).removeprefix(codecs.BOM_UTF8).lstrip()
    if start[:1] not in (b"{", b"["):
        raise refusal("JSON as plain text", "something else", "unpack it, and write an object in each line, or a list of them")


def _open_table(path: Path, columns: Columns, separator: str) -> datasets.Dataset:
    """Read a CSV or TSV file; a TSV has no quoting, as in GLUE.

    Column names that are all numbers, and not those of the first line, mean a file without a header, whose
    columns are counted from 0.
    """
    quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    with path.open(newline="", encoding="utf-8-sig") as file:
        first = next(csv.reader(file, delimiter=separator, quoting=quoting), [])
    names = column_names(columns)
    has_header = not all(name.isdecimal() for name in names) or set(names) <= set(first)
    frame = pd.read_csv(
        path,
        sep=separator,
        header=0 if has_header else None,
        quoting=quoting,
        keep_default_na=False,  # words such as "null" and "NA" are text like any other
        na_values=[""],
        low_memory=False,
    )
    frame.columns = [str(name) for name in frame.columns]
    if not has_header:
        _refuse_header(frame, names, first)
    return datasets.Dataset.from_pandas(frame, preserve_index=False)


def _refuse_header(frame: pd.DataFrame, names: list[str], first: list[str]) -> None:
    """Refuse a first line that is plainly a header when columns were given by number."""
    for name in names:
        if name not in frame.columns or len(frame) < 2 or pd.api.types.is_numeric_dtype(frame[name]):
            continue
        if pd.to_numeric(frame[name].iloc[1:], errors="coerce").notna().all():
            expected = "no header, because data.columns counts the columns by number"
            raise refusal(expected, f"the header {first[:8]}", "give the columns by name", field="columns")


def _open_folder(folder: Path, split: str) -> datasets.Dataset:
    names = {path.name for path in folder.iterdir()}
    if "dataset_dict.json" not in names and not {"state.json", "dataset_info.json"} <= names:
        scripts = sorted(name for name in names if name.endswith(".py"))
        given = f"one with code, {scripts[:3]}, which is never run" if scripts else f"{sorted(names)[:8]}"
        remedy = "write it with datasets' save_to_disk(folder), or name a Parquet, CSV or JSON file"
        raise refusal("a folder written by save_to_disk", given, remedy)
    if "dataset_dict.json" in names:
        folder = _split_folder(folder, split)
    try:
        _refuse_outside_files(folder)
        return datasets.Dataset.load_from_disk(str(folder))
    except (datasets.exceptions.DatasetsError, *READ_ERRORS) as error:
        remedy = "write it again with save_to_disk"
        raise refusal("a whole folder written by save_to_disk", reason(error), remedy) from None


def _split_folder(folder: Path, split: str) -> Path:
    wanted = ("train",) if split == "train" else ("test", "validation")
    for name in wanted:
        if (folder / name).is_dir():
            return folder / name
    given = f"the splits {sorted(path.name for path in folder.iterdir() if path.is_dir())[:8]}"
    remedy = "name the folder of one split, e.g. 'folder/train'"
    raise refusal(f"a split {' or '.join(map(repr, wanted))}", given, remedy)


def _refuse_outside_files(folder: Path) -> None:
    """Refuse a state file that names data outside its own folder."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    for part in [*state["_data_files"], *(state.get("_indices_data_files") or [])]:
        name = part["filename"]
        if Path(name).name != name:
            raise refusal("data files in the folder itself", f"{name!r}", "write it again with save_to_disk")


@contextmanager
def _offline() -> Iterator[None]:
    """Keep the libraries off the network and their progress bars off the terminal.

    Their environment variables have no effect once they are imported, hence the constants.
    """
    hub, config = huggingface_hub.constants, datasets.config
    before = (hub.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE, datasets.are_progress_bars_disabled())
    hub.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE, were_disabled = before
        if not were_disabled:
            datasets.enable_progress_bars()
