"""Text columns through a tokenizer folder: padded int64 tensors, one for each input that it names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import datasets
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from unified.dataset_columns import ROWS_AT_ONCE, is_text
from unified.dataset_problems import READ_ERRORS, reason, refusal

_FIELD = "tokenizer"

#: Above this a tokenizer's ``model_max_length`` means "unknown"; then texts are cut at _DEFAULT_LENGTH.
_SANE_LENGTH = 1_000_000
_DEFAULT_LENGTH = 512


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a local folder, running no code of it.

    Raises:
        InvalidSubmission: There is none, it needs code of its own, or it has no padding token.
    """
    remedy = "save it there with tokenizer.save_pretrained(folder)"
    if not folder.is_dir():
        raise refusal("a folder with a tokenizer", f"no folder at {str(folder)!r}", remedy, field=_FIELD)
    if _needs_code(folder):
        given = "one with code of its own (auto_map), which is never run"
        remedy = "convert it: save a fast tokenizer (tokenizer.json) of a class that transformers has"
        raise refusal("a tokenizer that transformers itself knows", given, remedy, field=_FIELD)
    for place in _outside_files(folder):
        raise refusal("settings that name no file elsewhere", place, "remove it from the settings", field=_FIELD)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except READ_ERRORS as error:
        raise refusal("a folder with a tokenizer", reason(error), remedy, field=_FIELD) from None
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise refusal("a folder with a tokenizer", f"{tokenizer}", remedy, field=_FIELD)
    if tokenizer.pad_token_id is None:
        remedy = "set tokenizer.pad_token, e.g. to its eos_token, and save it again"
        raise refusal("a tokenizer with a padding token", "one without", remedy, field=_FIELD)
    return tokenizer


def encode(
    dataset: datasets.Dataset, names: list[str], tokenizer: PreTrainedTokenizerBase, length: int | None
) -> tuple[dict[str, torch.Tensor], int]:
    """Return the tokenizer's outputs, each int64 ``(rows, length)``, and the length.

    Args:
        dataset: The rows, at least one.
        names: A column of texts, or two, of which each row is a pair.
        tokenizer: From :func:`load_tokenizer`.
        length: Number of tokens to pad and cut to. None: that of the longest text, at most what the tokenizer
            says its model takes, or 512 where it does not say.
    """
    for name in names:
        if not is_text(dataset, name):
            remedy = "leave out data.tokenizer, or name a column of texts"
            raise refusal("text", f"{dataset.features[name]}", remedy, field=f"column {name!r}")
    try:
        length = length or _longest(dataset, names, tokenizer)
        return _encoded(dataset, names, tokenizer, length), length
    except READ_ERRORS as error:
        remedy = "check the tokenizer folder with its own library"
        raise refusal("a tokenizer that takes these texts", reason(error), remedy, field=_FIELD) from None


def _needs_code(folder: Path) -> bool:
    """Whether a configuration in the folder names code to be loaded from it."""
    for name in ("tokenizer_config.json", "config.json"):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        auto_map = content.get("auto_map") if isinstance(content, dict) else None
        if auto_map and (name == "tokenizer_config.json" or "AutoTokenizer" in auto_map):
            return True
    return False


def _outside_files(folder: Path) -> Iterator[str]:
    """Yield what in the tokenizer's settings names a file out of its folder, which some kinds of tokenizers would read."""
    home = folder.resolve()
    for name in ("tokenizer_config.json", "special_tokens_map.json", "config.json"):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        for place, text in _texts(content, name):
            # relative to where the process is, as the library would take it; not all text fits a path
            if os.path.isfile(text) and not Path(text).resolve().is_relative_to(home):  # noqa: PTH113
                yield f"{place[:80]} = {text[:100]!r}"


def _texts(value: object, place: str) -> Iterator[tuple[str, str]]:
    waiting = [(place, value)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, str):
            yield place, value
        elif isinstance(value, dict):
            waiting += [(f"{place}.{key}", inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(place, inner) for inner in value]


def _longest(dataset: datasets.Dataset, names: list[str], tokenizer: PreTrainedTokenizerBase) -> int:
    limit = tokenizer.model_max_length
    limit = int(limit) if 0 < limit <= _SANE_LENGTH else _DEFAULT_LENGTH
    longest = 1
    for texts in _text_batches(dataset, names):
        encoded = tokenizer(*texts, truncation=True, max_length=limit)
        longest = max(longest, *(len(ids) for ids in encoded["input_ids"]))
    return longest


def _encoded(
    dataset: datasets.Dataset, names: list[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> dict[str, torch.Tensor]:
    # Encoded a second time rather than kept as lists of Python integers, which take eight times the memory.
    filled: dict[str, torch.Tensor] = {}
    start = 0
    for texts in _text_batches(dataset, names):
        batch = tokenizer(*texts, truncation=True, padding="max_length", max_length=length, return_tensors="pt")
        for name in tokenizer.model_input_names:
            if name in batch:
                rows = filled.setdefault(name, torch.empty((len(dataset), length), dtype=torch.int64))
                rows[start : start + len(texts[0])] = batch[name]
        start += len(texts[0])
    return filled


def _text_batches(dataset: datasets.Dataset, names: list[str]) -> Iterator[list[list[str]]]:
    """Yield, for some rows at a time, a list of texts for each column."""
    # pyrefly: ignore[missing-attribute]  # a Dataset selects columns as a Dataset
    for batch in dataset.select_columns(list(dict.fromkeys(names))).iter(ROWS_AT_ONCE):
        yield [list(batch[name]) for name in names]
