"""A small network of two tasks, its family and data."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from serving.data import TaskData
from serving.drafts import Draft
from serving.measuring import using_threads
from serving.records import Family, Kind, Source, TaskSpec, TensorSpec, Variant
from serving.store import VariantStore

TASKS = ("shoe", "size")


class TwoHeads(nn.Module):
    """A shared convolution with a batch norm, and a head for each task that it answers."""

    def __init__(self, tasks: tuple[str, ...] = TASKS, width: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        outputs = {"shoe": 3, "size": 1}
        self.heads = nn.ModuleDict({task: nn.Linear(width, outputs[task]) for task in tasks})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.encoder(image).mean((2, 3))
        return {task: head(features) for task, head in self.heads.items()}


class Unstable(nn.Module):
    """Answers what is not finite where an image is all zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        mean = image.square().mean((2, 3))
        return {"size": self.scale * mean / mean}


def two_tasks(name: str = "panels") -> Family:
    """Return the family of such networks: a classification of three classes and a regression."""
    return Family(
        name=name,
        inputs=(TensorSpec(name="image", dtype="FP32", shape=(1, 6, 6)),),
        tasks=(
            TaskSpec(name="shoe", kind=Kind.CLASSIFICATION, shape=(3,)),
            TaskSpec(name="size", kind=Kind.REGRESSION, shape=(1,), variance=2.0),
        ),
    )


def images(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


def labelled(rows: int = 40, seed: int = 0) -> TaskData:
    generator = torch.Generator().manual_seed(seed)
    return TaskData(
        inputs=(images(rows, seed),),
        labels={"shoe": torch.randint(3, (rows,), generator=generator), "size": torch.randn(rows, generator=generator)},
    )


def draft(name: str, tasks: tuple[str, ...] = TASKS, *, seed: int = 0, width: int = 4, parent: str | None = None) -> Draft:
    """Return a network of random weights as a draft."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = TwoHeads(tasks, width)
    return Draft(name=name, module=module, tasks=tasks, source=Source.GIVEN, parent=parent)


@contextmanager
def quiet() -> Iterator[None]:
    """Make measuring quick: garbage is collected before, which takes long where all that pytest holds is looked at.

    One thread: the second one's core may be at work for others, and then both spin.
    """
    gc.collect()
    gc.freeze()
    with using_threads(1):
        yield
    gc.unfreeze()


def filled_store(path: Path, *drafts: Draft) -> tuple[VariantStore, tuple[Variant, ...]]:
    """Return a store of these drafts, and its variants."""
    store = VariantStore.create(path, two_tasks())
    return store, tuple(store.add(each, (images(3),)) for each in drafts)
