"""CoLA and SST-2 as ids of words of one vocabulary; each sentence is labelled for its own task only."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

NUM_WORDS, SENTENCE_LENGTH = 4000, 24
PADDING, UNKNOWN, START = 0, 1, 2

Line = tuple[list[str], str, int]  # words, task, label
Encoded = tuple[Tensor, dict[str, Tensor]]

_WORD = re.compile(r"[a-z]+|[0-9]+|[^\sa-z0-9]")


def sentences(data: Path | None, *, num_train: int, num_test: int) -> tuple[Encoded, Encoded, str]:
    """Return ids ``(N, SENTENCE_LENGTH)`` with labels ``(N,)`` by task, for training and test, and where they come from.

    Half of the samples are of each task, in a seeded order; labels of the other task are -100.
    """
    folder = None if data is None else next((place for place in (data, data / "data") if (place / "cola").is_dir()), None)
    if folder is None or not (folder / "sst-2").is_dir():
        return _made_up(num_train, seed=1), _made_up(num_test, seed=2), "made up sentences"
    train = _mixed(_cola(folder, "in_domain_train"), _sst(folder, "train"), num_train, seed=1)
    test_cola = [*_cola(folder, "in_domain_dev"), *_cola(folder, "out_of_domain_dev")]
    test = _mixed(test_cola, [*_sst(folder, "dev"), *_sst(folder, "test")], num_test, seed=2)
    counts = Counter(word for words, _, _ in train for word in words)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[: NUM_WORDS - 3]
    known = {word: number for number, word in enumerate(ranked, start=3)}
    return _encoded(train, known), _encoded(test, known), "CoLA, SST-2"


def _cola(folder: Path, name: str) -> list[Line]:
    rows = [line.split("\t") for line in (folder / "cola" / f"{name}.tsv").read_text(encoding="utf-8").splitlines()]
    return [(_words(row[3]), "cola", int(row[1])) for row in rows]


def _sst(folder: Path, name: str) -> list[Line]:
    rows = [line.split("\t") for line in (folder / "sst-2" / f"{name}.tsv").read_text(encoding="utf-8").splitlines()]
    return [(_words(row[0]), "sst2", int(row[1])) for row in rows]


def _words(sentence: str) -> list[str]:
    return _WORD.findall(sentence.lower())


def _mixed(one: Sequence[Line], other: Sequence[Line], count: int, *, seed: int) -> list[Line]:
    generator = torch.Generator().manual_seed(seed)
    half = min(count // 2, len(one), len(other))
    chosen = [lines[i] for lines in (one, other) for i in torch.randperm(len(lines), generator=generator)[:half].tolist()]
    return [chosen[i] for i in torch.randperm(len(chosen), generator=generator).tolist()]


def _encoded(lines: Sequence[Line], known: dict[str, int]) -> Encoded:
    inputs = torch.full((len(lines), SENTENCE_LENGTH), PADDING)
    labels = {task: torch.full((len(lines),), -100) for task in ("cola", "sst2")}
    for row, (words, task, label) in enumerate(lines):
        ids = [START, *(known.get(word, UNKNOWN) for word in words)][:SENTENCE_LENGTH]
        inputs[row, : len(ids)] = torch.tensor(ids)
        labels[task][row] = label
    return inputs, labels


def _made_up(count: int, *, seed: int) -> Encoded:
    """Sentences of random length; one label is the parity of the second word, the other that of the third."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(3, NUM_WORDS, (count, SENTENCE_LENGTH), generator=generator)
    lengths = torch.randint(4, SENTENCE_LENGTH + 1, (count, 1), generator=generator)
    inputs[:, 0] = START
    inputs.masked_fill_(torch.arange(SENTENCE_LENGTH) >= lengths, PADDING)
    of_cola = torch.rand(count, generator=generator) < 0.5
    parity = {"cola": inputs[:, 1] % 2, "sst2": inputs[:, 2] % 2}
    return inputs, {
        "cola": torch.where(of_cola, parity["cola"], -100),
        "sst2": torch.where(of_cola, torch.tensor(-100), parity["sst2"]),
    }
