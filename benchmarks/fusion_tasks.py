"""The tasks of the fusion benchmark: several labels on the same inputs, and the models that were trained for each alone.

Pictures are Fashion-MNIST's, 28x28 padded to 32x32. ``items``: one item a picture; labels are its class (10), its kind (shoes,
tops, trousers and dresses, bags: 4) and whether it covers the arms (2). ``panels``: four items at half size; labels are the
class of the first (10), whether there is a shoe (2), and how many classes there are (4). ``text``: CoLA and SST-2, each
labelled for its own sentences only, and fused without any label. Without the data folder everything is made up, in the same
shapes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.fusion_models import VGG, ResNet18, TextClassifier, ViT
from benchmarks.fusion_text import NUM_WORDS, SENTENCE_LENGTH, sentences
from benchmarks.tensors import fashion

SHOES = torch.tensor([5, 7, 9])
_KIND = torch.tensor([1, 2, 1, 2, 1, 0, 1, 0, 3, 0])
_ARMS = torch.tensor([0, 0, 1, 0, 1, 0, 1, 0, 0, 0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Inputs ``(N, ...)`` and, by task, labels ``(N,)``; -100 where a sample has none for a task."""

    inputs: Tensor
    labels: Mapping[str, Tensor]

    def first(self, count: int) -> Samples:
        """Return the first samples."""
        return Samples(inputs=self.inputs[:count], labels={task: values[:count] for task, values in self.labels.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSet:
    """What is fused: data for training, validation and the final test, and a model per task.

    Attributes:
        name: For the report.
        source: Where the data come from.
        build: Makes the untrained model of each task.
        epochs: Passes of training that each model gets.
        lr: Adam's learning rate for them.
        has_labels: Whether the search may see labels; without them it judges by agreement with the models.
    """

    name: str
    source: str
    train: Samples
    validation: Samples
    test: Samples
    build: Mapping[str, Callable[[], nn.Module]]
    epochs: int
    lr: float
    has_labels: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How many samples there are, how often the models are trained on them, and how wide they are.

    Attributes:
        text_epochs: Passes of the models of sentences, which know a few thousand by heart soon.
    """

    num_train: int
    num_validation: int
    num_test: int
    epochs: int
    text_epochs: int
    width: int = 8


SCALES = {
    "full": Scale(num_train=8192, num_validation=4096, num_test=4096, epochs=5, text_epochs=4),
    "quick": Scale(num_train=3072, num_validation=1536, num_test=2048, epochs=3, text_epochs=6),
    "tiny": Scale(num_train=512, num_validation=256, num_test=256, epochs=4, text_epochs=4, width=4),
}


def items(data: Path | None, scale: Scale, name: str, models: Mapping[str, Callable[[], nn.Module]], lr: float) -> TaskSet:
    """Return the tasks on single items that ``models`` names."""
    found = fashion(data, num_train=scale.num_train + scale.num_validation, num_test=scale.num_test)
    whole, test = _item_samples(found.train), _item_samples(found.test)
    return _task_set(name, found.source, whole, test, models, scale, lr)


def panels(data: Path | None, scale: Scale, name: str, models: Mapping[str, Callable[[], nn.Module]], lr: float) -> TaskSet:
    """Return the tasks on pictures of four items."""
    found = fashion(data, num_train=scale.num_train + scale.num_validation, num_test=scale.num_test)
    cut = scale.num_train
    images, labels = found.train
    return TaskSet(
        name=name,
        source=found.source,
        train=_panel_samples(images[:cut], labels[:cut], cut, seed=1),
        validation=_panel_samples(images[cut:], labels[cut:], scale.num_validation, seed=2),
        test=_panel_samples(*found.test, scale.num_test, seed=3),
        build=models,
        epochs=scale.epochs,
        lr=lr,
    )


def text(data: Path | None, scale: Scale, name: str, models: Mapping[str, Callable[[], nn.Module]], lr: float) -> TaskSet:
    """Return CoLA and SST-2, half of the samples each."""
    whole, test, source = sentences(data, num_train=scale.num_train + scale.num_validation, num_test=scale.num_test)
    samples = [Samples(inputs=inputs, labels=labels) for inputs, labels in (whole, test)]
    tasks = _task_set(name, source, samples[0], samples[1], models, scale, lr)
    return replace(tasks, epochs=scale.text_epochs, has_labels=False)


def _task_set(
    name: str,
    source: str,
    whole: Samples,
    test: Samples,
    models: Mapping[str, Callable[[], nn.Module]],
    scale: Scale,
    lr: float,
) -> TaskSet:
    cut = len(whole.inputs) - scale.num_validation
    rest = Samples(inputs=whole.inputs[cut:], labels={task: values[cut:] for task, values in whole.labels.items()})
    return TaskSet(
        name=name, source=source, train=whole.first(cut), validation=rest, test=test, build=models, epochs=scale.epochs, lr=lr
    )


def _item_samples(split: tuple[Tensor, Tensor]) -> Samples:
    images, classes = split
    return Samples(inputs=_normalised(images), labels={"item": classes, "kind": _KIND[classes], "arms": _ARMS[classes]})


def _panel_samples(images: Tensor, classes: Tensor, count: int, *, seed: int) -> Samples:
    """Draw four items per panel, with replacement, and put them into the corners at half size."""
    index = torch.randint(len(images), (count, 4), generator=torch.Generator().manual_seed(seed))
    small = F.avg_pool2d(images, 2)
    rows = [torch.cat([small[index[:, 2 * row]], small[index[:, 2 * row + 1]]], dim=3) for row in (0, 1)]
    shown = classes[index]
    distinct = F.one_hot(shown, 10).amax(1).sum(1) - 1
    labels = {"first": shown[:, 0], "shoe": torch.isin(shown, SHOES).any(1).long(), "distinct": distinct}
    return Samples(inputs=_normalised(torch.cat(rows, dim=2)), labels=labels)


def _normalised(images: Tensor) -> Tensor:
    return (F.pad(images, (2, 2, 2, 2)) - 0.286) / 0.353


def task_sets(data: Path | None, scale: Scale) -> dict[str, Callable[[], TaskSet]]:
    """Return the sets by name: B1, B5, B6 and B7 of the paper in kind, narrowed."""
    width = scale.width

    def vgg(depth: int, classes: int) -> Callable[[], nn.Module]:
        return lambda: VGG(depth, width=width, classes=classes)

    def vit(depth: int, classes: int) -> Callable[[], nn.Module]:
        return lambda: ViT(dim=8 * width, depth=depth, classes=classes)

    def bert(depth: int) -> Callable[[], nn.Module]:
        return lambda: TextClassifier(vocabulary=NUM_WORDS, length=SENTENCE_LENGTH, dim=8 * width, depth=depth)

    return {
        "vgg": lambda: items(data, scale, "3 x VGG-13", {"item": vgg(13, 10), "kind": vgg(13, 4), "arms": vgg(13, 2)}, 2e-3),
        "mixed": lambda: panels(
            data, scale, "VGG-16 + ResNet-18",
            {"first": vgg(16, 10), "shoe": lambda: ResNet18(width=width, classes=2)}, 2e-3,
        ),
        "vit": lambda: items(data, scale, "ViT-6 + ViT-4", {"item": vit(6, 10), "arms": vit(4, 2)}, 1e-3),
        "text": lambda: text(data, scale, "BERT-like-4 + BERT-like-3", {"cola": bert(4), "sst2": bert(3)}, 1e-3),
    }  # fmt: skip


def trained(tasks: TaskSet, seed: int, cache: Path | None = None) -> tuple[dict[str, nn.Module], float]:
    """Train each task's model alone; return them in eval mode, and the seconds that it took.

    Args:
        tasks: What to train for.
        seed: Of initial weights and the order of samples.
        cache: Where trained weights are kept, or None.
    """
    began, models = time.perf_counter(), {}
    for number, (task, build) in enumerate(tasks.build.items()):
        torch.manual_seed(1000 * seed + number)
        model = build()
        name = f"{tasks.name}-{task}-{seed}-{len(tasks.train.inputs)}x{tasks.epochs}.pt".replace(" ", "")
        path = None if cache is None else cache / name
        if path is not None and path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
        else:
            _fit(model, tasks.train.inputs, tasks.train.labels[task], tasks)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save(model.state_dict(), path)
        models[task] = model.eval()
    return models, time.perf_counter() - began


def _fit(model: nn.Module, inputs: Tensor, labels: Tensor, tasks: TaskSet, batch_size: int = 64) -> None:
    labelled = (labels != -100).nonzero().flatten()
    per_epoch = len(labelled) // batch_size
    steps = tasks.epochs * per_epoch
    optimizer = torch.optim.Adam(model.parameters(), lr=tasks.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, tasks.lr, total_steps=max(1, steps))
    model.train()
    order = labelled
    for step in range(steps):
        if step % per_epoch == 0:
            order = labelled[torch.randperm(len(labelled))]
        at = step % per_epoch * batch_size
        index = order[at : at + batch_size]
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs[index]), labels[index]).backward()
        optimizer.step()
        schedule.step()


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Return the share of labelled samples that a model gets right."""
    model.eval()
    with torch.inference_mode():
        found = torch.cat([model(batch).argmax(1) for batch in inputs.split(512)])
    labelled = labels != -100
    return (found[labelled] == labels[labelled]).double().mean().item()
