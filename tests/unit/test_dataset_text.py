import json
import os
import socket
from pathlib import Path

import pytest
import torch

from tests.unit.dataset_cases import PAIRS, TEXTS, WRITERS, read, refused, write_tokenizer
from unified.dataset_files import conventions_of
from unified.datasets import load_tensors


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Fail whatever opens a connection or asks for an address."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"network used: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def tokenizer(tmp_path):
    write_tokenizer(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("inputs", ["text", ["text"], ["text", "other"]])
@pytest.mark.parametrize("max_length", [None, 4, 12])
def test_texts_become_what_the_tokenizer_gives(tmp_path, inputs, max_length):
    fast = write_tokenizer(tmp_path / "tokenizer")
    WRITERS["t.csv"](tmp_path / "t.csv")
    ref = read(tmp_path / "t.csv", inputs, "kind", tokenizer=tmp_path / "tokenizer", max_length=max_length)
    texts = [TEXTS, PAIRS] if len(inputs) == 2 else [TEXTS]
    padding = "max_length" if max_length else "longest"
    expected = dict(fast(*texts, padding=padding, truncation=True, max_length=max_length or 512, return_tensors="pt"))
    data = load_tensors(ref)
    assert set(data.inputs) == {"input_ids", "token_type_ids", "attention_mask"}
    torch.testing.assert_close(data.inputs, expected, rtol=0, atol=0)
    assert conventions_of(ref).length == expected["input_ids"].shape[1]


def test_test_texts_are_padded_and_cut_to_the_length_of_the_training_texts(tmp_path, tokenizer):
    (tmp_path / "train.csv").write_text("x,y\nthe cat sat,0\na,1\n")
    (tmp_path / "test.csv").write_text("x,y\nthe cat ate the dog,0\n")
    train = read(tmp_path / "train.csv", "x", "y", tokenizer=tokenizer)
    test = read(tmp_path / "test.csv", "x", "y", tokenizer=tokenizer, train=train)
    assert load_tensors(train).inputs["input_ids"].shape == (2, 5)
    assert load_tensors(test).inputs["input_ids"].tolist() == [[2, 4, 6, 9, 3]]


@pytest.mark.parametrize(("limit", "length"), [(8, 8), (None, 512)])
def test_long_texts_are_cut_at_what_the_tokenizer_says_or_512(tmp_path, limit, length):
    write_tokenizer(tmp_path / "tokenizer", max_length=limit)
    (tmp_path / "t.csv").write_text("x,y\n" + "cat " * 600 + ",0\n")
    data = load_tensors(read(tmp_path / "t.csv", "x", "y", tokenizer=tmp_path / "tokenizer"))
    assert data.inputs["input_ids"].shape == (1, length)


def test_another_tokenizer_is_another_conversion(tmp_path, tokenizer):
    (tmp_path / "t.csv").write_text("x,y\nthe cat,0\n")
    before = read(tmp_path / "t.csv", "x", "y", tokenizer=tokenizer)
    content = (tokenizer / "tokenizer.json").read_text()
    (tokenizer / "tokenizer.json").write_text(content.replace('"cat": 6', '"cat": 10'))
    after = read(tmp_path / "t.csv", "x", "y", tokenizer=tokenizer)
    assert load_tensors(before).inputs["input_ids"].tolist() == [[2, 4, 6, 3]]
    assert load_tensors(after).inputs["input_ids"].tolist() == [[2, 4, 10, 3]]


def test_words_that_mean_missing_elsewhere_and_quotes_in_a_tsv_are_text(tmp_path, tokenizer):
    (tmp_path / "t.tsv").write_text('x\ty\nNA\t0\n"the cat\t1\nnull\t0\ncat" dog\t1\n')
    data = load_tensors(read(tmp_path / "t.tsv", "x", "y", tokenizer=tokenizer))
    assert data.targets.tolist() == [0, 1, 0, 1]
    assert data.inputs["attention_mask"].sum(1).tolist() == [3, 5, 3, 5]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": "text"}, "one column of texts, or a list of two"),
        (["text", "other", "kind"], "one column of texts, or a list of two"),
        ("a", "leave out data.tokenizer"),
    ],
)
def test_what_a_tokenizer_cannot_take_is_refused(tmp_path, tokenizer, inputs, message):
    WRITERS["t.parquet"](tmp_path / "t.parquet")
    assert message in refused(tmp_path / "t.parquet", inputs, "kind", tokenizer=tokenizer)


def remote_code(folder):
    write_tokenizer(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["code.Mine", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('ran')")


TOKENIZERS = {
    "missing": (lambda folder: None, "no folder at"),
    "empty": (lambda folder: folder.mkdir(), "a folder with a tokenizer"),
    "code": (remote_code, "code of its own"),
    "no padding token": (lambda folder: write_tokenizer(folder, with_pad=False), "a padding token"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer_that_cannot_be_used_is_refused(tmp_path, case):
    write, message = TOKENIZERS[case]
    write(tmp_path / "folder")
    (tmp_path / "t.csv").write_text("x,y\nthe cat,0\n")
    assert message in refused(tmp_path / "t.csv", "x", "y", tokenizer=tmp_path / "folder")


DATA = Path(os.environ.get("UNIFIED_DATA", "")) / "data"
needs_data = pytest.mark.skipif(
    not os.environ.get("UNIFIED_DATA") or not DATA.is_dir(), reason="UNIFIED_DATA names no folder with data/"
)


@needs_data
@pytest.mark.parametrize(
    ("name", "text", "label"),
    [("cola/in_domain_train.tsv", 3, 1), ("cola/out_of_domain_dev.tsv", 3, 1), ("sst-2/dev.tsv", 0, 1)],
)
def test_real_sentences_and_labels_are_read_line_by_line(tmp_path, name, text, label):
    fast = write_tokenizer(tmp_path / "tokenizer")
    content = (DATA / name).read_text(encoding="utf-8")
    lines = [line.split("\t") for line in content.removesuffix("\n").split("\n")]
    settings = {"tokenizer": tmp_path / "tokenizer", "max_length": 16, "cache_dir": tmp_path / "cache"}
    data = load_tensors(read(DATA / name, str(text), str(label), **settings))
    assert data.targets.tolist() == [int(line[label]) for line in lines]
    assert set(data.targets.tolist()) == {0, 1}
    sentences = [line[text] for line in lines]
    expected = dict(fast(sentences, padding="max_length", truncation=True, max_length=16, return_tensors="pt"))
    torch.testing.assert_close(data.inputs, expected, rtol=0, atol=0)
