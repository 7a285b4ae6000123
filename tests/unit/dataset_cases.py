"""Tables, and a tokenizer, in every form that a job can name, for the tests of their conversion."""

import csv
import json
from dataclasses import dataclass

import datasets
import pytest

from unified.dataset_files import reference
from unified.errors import InvalidSubmission

TEXTS = ["the cat sat", "a dog", "the dog ate the cat", "a cat"]
PAIRS = ["a", "the dog sat", "cat", "dog"]


@dataclass
class Spec:
    """What a job says of its columns."""

    inputs: str | list[str] | dict[str, str]
    targets: str


def read(path, inputs, targets, **changes):
    """The reference of a source, converted into the folder ``cache`` beside it."""
    settings = {"tokenizer": None, "max_length": None, "cache_dir": path.parent / "cache", "job": "digits"}
    return reference(path, columns=Spec(inputs, targets), **{**settings, **changes})


def refused(*args, **changes):
    """The one problem of a source that must not be accepted, as text."""
    with pytest.raises(InvalidSubmission) as caught:
        read(*args, **changes)
    (problem,) = caught.value.problems
    assert problem.job == "digits"
    assert problem.remedy
    return str(problem)


def write_tokenizer(folder, *, max_length=None, with_pad=True):
    """A word tokenizer whose pairs have token types, as BERT's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "a", "cat", "dog", "sat", "ate"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    if with_pad:
        special["pad_token"] = "[PAD]"
    if max_length is not None:
        special["model_max_length"] = max_length
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **special,
    )
    fast.save_pretrained(folder)
    return fast


def table():
    return {
        "a": [1, 2, 3, 4],
        "b": [0.1, 0.2, 0.3, 1e-9],
        "flag": [True, False, True, True],
        "text": TEXTS,
        "other": PAIRS,
        "kind": ["pos", "neg", "neg", "pos"],
        "row": [[1, 2], [3, 4], [5, 6], [7, 8]],
        "matrix": [[[0.5, 1.5]] * 3] * 4,
        "ragged": [[1], [1, 2], [3], [4]],
    }


def flat(rows):
    return {name: values for name, values in rows.items() if not isinstance(values[0], list)}


def write_csv(path, separator):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(flat(table()))
        writer.writerows(zip(*flat(table()).values(), strict=True))


WRITERS = {
    "t.parquet": lambda path: datasets.Dataset.from_dict(table()).to_parquet(path),
    "t.json": lambda path: path.write_text(json.dumps(rows())),
    "t.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, rows()))),
    "t.csv": lambda path: write_csv(path, ","),
    "t.tsv": lambda path: write_csv(path, "\t"),
    "folder": lambda path: datasets.Dataset.from_dict(table()).save_to_disk(path),
}


def rows():
    return [dict(zip(table(), row, strict=True)) for row in zip(*table().values(), strict=True)]
