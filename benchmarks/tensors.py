"""The data sets of the benchmark as tensors: real where the data folder has them, else of the same shapes.

A data set is ``(inputs, targets)`` for training and the same for testing, samples along the first axis.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

TEXT_LENGTH = 32  # words of a sample; the models' ``length``
LM_WORDS, SENTENCE_WORDS = 2000, 4000  # sizes of the vocabularies; the models' ``vocabulary``
PADDING, UNKNOWN, START = 0, 1, 2

Split = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSet:
    """A data set: where it comes from, and its two splits of ``(inputs, targets)``."""

    source: str
    train: Split
    test: Split


def digits() -> TensorSet:
    """Return scikit-learn's 8x8 digits: ``(1437, 1, 8, 8)`` and ``(360, 1, 8, 8)``, values in [0, 1]."""
    pixels, classes = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16
    labels = torch.from_numpy(classes).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    return TensorSet(
        source="scikit-learn digits",
        train=(images[:1437], labels[:1437]),
        test=(images[1437:], labels[1437:]),
    )


def fashion(data: Path | None, *, num_train: int, num_test: int) -> TensorSet:
    """Return the first images of Fashion-MNIST, ``(N, 1, 28, 28)`` in [0, 1], or made-up ones without it."""
    folder = find_folder(data, "fashion-mnist")
    if folder is None:
        return made_up_images((1, 28, 28), classes=10, num_train=num_train, num_test=num_test)
    return TensorSet(
        source="Fashion-MNIST",
        train=read_idx(folder, "train", num_train),
        test=read_idx(folder, "t10k", num_test),
    )


def read_idx(folder: Path, split: str, count: int) -> Split:
    """Read ``count`` images and labels of the IDX files of one split."""
    with gzip.open(folder / f"{split}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(16 + count * 784), dtype=np.uint8, offset=16)
    with gzip.open(folder / f"{split}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + count), dtype=np.uint8, offset=8)
    images = torch.tensor(pixels).view(-1, 1, 28, 28).float() / 255
    return images, torch.tensor(labels).long()


def made_up_images(shape: tuple[int, int, int], *, classes: int, num_train: int, num_test: int) -> TensorSet:
    """Return noisy copies of one coarse pattern per class, ``(N, *shape)``: learnable."""
    generator = torch.Generator().manual_seed(classes)
    coarse = torch.randn(classes, shape[0], 4, 4, generator=generator)
    patterns = F.interpolate(coarse, size=shape[1:], mode="bilinear")
    labels = torch.randint(classes, (num_train + num_test,), generator=generator)
    images = patterns[labels] + 0.7 * torch.randn(len(labels), *shape, generator=generator)
    source = f"made up, {shape[0]}x{shape[1]}x{shape[2]}, {classes} classes"
    return TensorSet(
        source=source,
        train=(images[:num_train], labels[:num_train]),
        test=(images[num_train:], labels[num_train:]),
    )


def next_words(data: Path | None, *, num_train: int, num_test: int) -> TensorSet:
    """Return word ids and the ids that follow them, both ``(N, TEXT_LENGTH)``, of WikiText-2, or made up."""
    folder = find_folder(data, "wikitext-2")
    if folder is None:
        return _made_up_words(num_train, num_test)
    # The corpus's own validation text is the smallest part that is large enough to train on.
    train, test = ((folder / name).read_text(encoding="utf-8").split() for name in ("valid.txt", "test.txt"))
    known = _vocabulary(train, LM_WORDS, reserved=2)
    return TensorSet(source="WikiText-2", train=_windows(train, known, num_train), test=_windows(test, known, num_test))


def _windows(words: Sequence[str], known: dict[str, int], count: int) -> Split:
    ids = torch.tensor([known.get(word, UNKNOWN) for word in words[: count * TEXT_LENGTH + 1]])
    return ids[:-1].view(-1, TEXT_LENGTH).clone(), ids[1:].view(-1, TEXT_LENGTH).clone()


def _made_up_words(num_train: int, num_test: int) -> TensorSet:
    """Return a noisy counting sequence over the vocabulary: the next word follows from the present."""
    generator = torch.Generator().manual_seed(1)
    starts = torch.randint(LM_WORDS, (num_train + num_test, 1), generator=generator)
    ids = starts + 7 * torch.arange(TEXT_LENGTH + 1) + torch.randint(2, (len(starts), TEXT_LENGTH + 1), generator=generator)
    inputs, targets = (ids % LM_WORDS)[:, :-1].clone(), (ids % LM_WORDS)[:, 1:].clone()
    return TensorSet(
        source="made up words",
        train=(inputs[:num_train], targets[:num_train]),
        test=(inputs[num_train:], targets[num_train:]),
    )


def sentiment(data: Path | None, *, num_train: int, num_test: int) -> TensorSet:
    """Return word ids ``(N, TEXT_LENGTH)``, padded with 0, and labels 0 or 1, of SST-2 or made up."""
    folder = find_folder(data, "sst-2")
    if folder is None:
        return _made_up_sentences(num_train, num_test)
    train, test = (
        _labelled_lines(folder / "train.tsv", num_train),
        _labelled_lines(folder / "dev.tsv", num_test),
    )
    known = _vocabulary((word for sentence, _ in train for word in sentence), SENTENCE_WORDS, reserved=3)
    return TensorSet(source="SST-2", train=_padded(train, known), test=_padded(test, known))


def _labelled_lines(path: Path, count: int) -> list[tuple[list[str], int]]:
    with path.open(encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line, _ in zip(file, range(count), strict=False)]
    return [(sentence.split(), int(label)) for sentence, label in rows]


def _padded(lines: Sequence[tuple[list[str], int]], known: dict[str, int]) -> Split:
    inputs = torch.full((len(lines), TEXT_LENGTH), PADDING)
    for row, (words, _) in enumerate(lines):
        ids = [START, *(known.get(word, UNKNOWN) for word in words)][:TEXT_LENGTH]
        inputs[row, : len(ids)] = torch.tensor(ids)
    return inputs, torch.tensor([label for _, label in lines])


def _made_up_sentences(num_train: int, num_test: int) -> TensorSet:
    """Return sentences of random length whose label is the parity of the word after the start."""
    generator = torch.Generator().manual_seed(2)
    count = num_train + num_test
    inputs = torch.randint(3, SENTENCE_WORDS, (count, TEXT_LENGTH), generator=generator)
    lengths = torch.randint(4, TEXT_LENGTH + 1, (count, 1), generator=generator)
    inputs[:, 0] = START
    inputs.masked_fill_(torch.arange(TEXT_LENGTH) >= lengths, PADDING)
    labels = inputs[:, 1] % 2
    return TensorSet(
        source="made up sentences",
        train=(inputs[:num_train], labels[:num_train]),
        test=(inputs[num_train:], labels[num_train:]),
    )


def find_folder(data: Path | None, name: str) -> Path | None:
    """Return the folder of a data set under ``data`` or ``data/data``, or None where there is none."""
    places = [] if data is None else [data / name, data / "data" / name]
    return next((place for place in places if place.is_dir()), None)


def _vocabulary(words: Iterable[str], size: int, *, reserved: int) -> dict[str, int]:
    """Number the most frequent words from ``reserved`` on, ties by spelling so that every run agrees."""
    ranked = sorted(Counter(words).items(), key=lambda item: (-item[1], item[0]))
    return {word: reserved + index for index, (word, _) in enumerate(ranked[: size - reserved])}


SETS: dict[str, Callable[[Path | None], TensorSet]] = {
    "digits": lambda _: digits(),
    "fashion-lenet": lambda data: fashion(data, num_train=700, num_test=256),
    "fashion-vgg": lambda data: fashion(data, num_train=1180, num_test=128),
    "images-10": lambda _: made_up_images((3, 32, 32), classes=10, num_train=280, num_test=64),
    "images-20": lambda _: made_up_images((3, 32, 32), classes=20, num_train=280, num_test=64),
    "wikitext": lambda data: next_words(data, num_train=125, num_test=64),
    "sst-2": lambda data: sentiment(data, num_train=520, num_test=128),
}
"""Every data set by name; given the folder of real data, or None."""
