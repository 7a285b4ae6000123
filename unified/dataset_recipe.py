"""How a table becomes tensors, as records: free of the libraries that do it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

#: Files that hold a table; folders are the other form.
TABLE_SUFFIXES = (".parquet", ".csv", ".tsv", ".json", ".jsonl")


class Columns(Protocol):
    """Which columns hold what."""

    @property
    def inputs(self) -> str | list[str] | dict[str, str]:
        """One column; several numeric ones to be stacked, or two texts; or a column for each input's name."""
        ...

    @property
    def targets(self) -> str:
        """The column of targets."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Conventions:
    """What the conversion of the training data settled and that of the test data follows.

    Attributes:
        labels: The text of each class, in the order of their numbers; None if the targets are numbers.
        length: Number of tokens to which texts are padded; None without a tokenizer.
    """

    labels: tuple[str, ...] | None = None
    length: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a source becomes tensors.

    Attributes:
        source: A folder or a file.
        columns: Which columns hold what.
        tokenizer: Folder of the tokenizer, for texts.
        max_length: Number of tokens to pad and cut texts to; None for the longest.
        train: The conventions of the training data if this is test data, otherwise None.
    """

    source: Path
    columns: Columns
    tokenizer: Path | None = None
    max_length: int | None = None
    train: Conventions | None = None


def column_names(columns: Columns) -> list[str]:
    """Return the names of all columns asked for, each once."""
    inputs = columns.inputs
    names = [inputs] if isinstance(inputs, str) else list(inputs.values() if isinstance(inputs, dict) else inputs)
    return list(dict.fromkeys([*names, columns.targets]))
