"""Fashion-MNIST panels: pictures of four items side by side, with a bit for each class that occurs among them.

Source: *Pruning-Aware Merging for Efficient Multitask Inference* (KDD 2021), Appendix B. There, 8000 training and
2000 test panels of 496x124 pixels come from a public generator that draws both from the same thousand items. Here no
item is in two splits, 2000 panels for validation are added, and the default keeps the items' own size: 28x112.

A *task* is a sequence of predicates, a predicate a set of classes; its label is 1 where an item of the set occurs.
Shapes: N panels, ``B`` predicates of a task, height ``H`` (28, or 124 at full size).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.tensors import find_folder, read_idx

ITEMS_PER_PANEL = 4
NUM_CLASSES = 10
FULL_SIZE = 124  # pixels of an item's side at the published size
MEAN, DEVIATION = 0.286, 0.353  # of the pixels of Fashion-MNIST, in [0, 1]
NUM_TRAIN_ITEMS, NUM_VALIDATION_ITEMS, NUM_TEST_ITEMS = 55_000, 5_000, 10_000
NUM_PANELS = {"train": 8000, "validation": 2000, "test": 2000}

Predicate = frozenset[int]
Tasks = Mapping[str, Sequence[Predicate]]


def one_bit_per_class(classes: Iterable[int]) -> tuple[Predicate, ...]:
    """Return the predicates "class c occurs", for each of the classes."""
    return tuple(frozenset({each}) for each in classes)


TWO_TASKS: Tasks = {"A": one_bit_per_class(range(5)), "B": one_bit_per_class(range(5, 10))}
"""The published split of the ten bits."""

THREE_TASKS: Tasks = {
    "A": one_bit_per_class(range(3)),
    "B": one_bit_per_class(range(3, 6)),
    "C": one_bit_per_class(range(6, 10)),
}

TASKS: Mapping[str, Tasks] = {"two": TWO_TASKS, "three": THREE_TASKS}
"""By the names that the benchmark has for them."""

INCLUSION: Tasks = {"A": one_bit_per_class(range(10)), "B": one_bit_per_class(range(5))}
"""Task B is a part of task A (Section 6.3.2)."""

RELATEDNESS: Mapping[float, Tasks] = {
    0.0005: {"A": (frozenset({0, 1, 2}),), "B": (frozenset({2, 3, 4}),)},
    0.102: {"A": (frozenset({0, 1, 2}),), "B": (frozenset({1, 2, 3}),)},
    0.208: {"A": (frozenset({0, 1, 2, 3}),), "B": (frozenset({0, 1, 2, 3, 4}),)},
    0.394: {"A": (frozenset({0, 1}),), "B": (frozenset({0, 1, 2}),)},
}
"""Pairs of tasks of one bit each, by I(Y^A; Y^B) in bits, computed from the uniform draw (Section 6.3.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """Items: ``pixels`` normalised, ``(M, 28, 28)``, ``classes`` from 0 to 9, ``(M,)``, and the ``side`` shown in a panel."""

    pixels: Tensor
    classes: Tensor
    side: int = 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Panels:
    """Panels: ``inputs`` ``(N, 1, H, 4H)`` and ``labels`` of 0 and 1 by task, ``(N, B)``, all float32."""

    inputs: Tensor
    labels: dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelData:
    """The panels of a seed for ``tasks``, and the items of the training split, from which more can be drawn."""

    tasks: Tasks
    train: Panels
    validation: Panels
    test: Panels
    train_items: Items


def load_items(data: Path | None, *, full_size: bool = False) -> dict[str, Items]:
    """Read the items of the splits ``train``, ``validation`` and ``test``; no item is in two of them.

    Args:
        data: The folder that holds ``fashion-mnist/`` or ``data/fashion-mnist/`` with the four IDX files.
        full_size: Show each item at 124x124 pixels in the panels (bilinear), as published.

    Raises:
        FileNotFoundError: There is no such folder; nothing is made up in its place.
    """
    folder = find_folder(data, "fashion-mnist")
    if folder is None:
        message = f"expected a folder 'fashion-mnist' with the four IDX files in {data} or {data}/data; give it by --data"
        raise FileNotFoundError(message)
    pixels, classes = read_idx(folder, "train", NUM_TRAIN_ITEMS + NUM_VALIDATION_ITEMS)
    test_pixels, test_classes = read_idx(folder, "t10k", NUM_TEST_ITEMS)
    parts = {
        "train": (pixels[:NUM_TRAIN_ITEMS], classes[:NUM_TRAIN_ITEMS]),
        "validation": (pixels[NUM_TRAIN_ITEMS:], classes[NUM_TRAIN_ITEMS:]),
        "test": (test_pixels, test_classes),
    }
    side = FULL_SIZE if full_size else 28
    return {
        split: Items(pixels=(images[:, 0] - MEAN) / DEVIATION, classes=labels, side=side)
        for split, (images, labels) in parts.items()
    }


def draw_panels(items: Items, tasks: Tasks, count: int, generator: torch.Generator) -> Panels:
    """Draw panels of four items each, uniformly and with replacement."""
    inputs, classes = draw_pictures(items, count, generator)
    return Panels(inputs=inputs, labels=labels_of(classes, tasks))


def draw_pictures(items: Items, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the pictures of panels, ``(count, 1, H, 4H)``, and the classes of their items, ``(count, 4)``."""
    chosen = torch.randint(len(items.classes), (count, ITEMS_PER_PANEL), generator=generator)
    pictures, side = items.pixels[chosen], items.side
    if side != pictures.shape[-1]:
        pictures = F.interpolate(pictures, size=(side, side), mode="bilinear")
    inputs = pictures.transpose(1, 2).reshape(count, 1, side, ITEMS_PER_PANEL * side)
    return inputs, items.classes[chosen]


def labels_of(classes: Tensor, tasks: Tasks) -> dict[str, Tensor]:
    """Return each task's labels, ``(N, B)`` float32, of panels whose items have these classes, ``(N, 4)``."""
    occurs = torch.zeros(len(classes), NUM_CLASSES, dtype=torch.bool).scatter_(1, classes, value=True)
    return {
        task: torch.stack([occurs[:, sorted(each)].any(1) for each in predicates], dim=1).float()
        for task, predicates in tasks.items()
    }


def seeded_panels(items: Mapping[str, Items], tasks: Tasks = TWO_TASKS, *, seed: int) -> PanelData:
    """Draw the benchmark's panels: 8000 for training, 2000 for validation, 2000 for testing.

    Equal seeds give equal panels whatever the tasks, so that results can be compared over label sets.

    Args:
        items: Of ``load_items``; at full size the panels take 3 GB.
        tasks: The predicates of each task.
        seed: Of the draw; each split has a generator of its own.
    """
    drawn = {
        split: draw_panels(items[split], tasks, count, torch.Generator().manual_seed(len(NUM_PANELS) * seed + index))
        for index, (split, count) in enumerate(NUM_PANELS.items())
    }
    return PanelData(**drawn, tasks=tasks, train_items=items["train"])
