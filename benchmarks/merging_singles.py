"""The single networks that the merging benchmark starts from: trained, or read back from a folder.

The paper on merging (named in ``merging_data``) does not state how its networks were trained.
Sixteen epochs of LeNet-5 are not its plateau: thirty-two gain one point more (task A, seed 0: 91.0 to 92.0 % of validation).
"""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.merging_data import PanelData, draw_panels
from benchmarks.merging_models import NETWORKS

_EVALUATION_BATCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a single network is trained: AdamW, one cycle of the learning rate.

    Attributes:
        network: A name of ``merging_models.NETWORKS``.
        epochs: Of as many panels each as the training split holds, 8000 in the benchmark.
        batch_size: Panels of a step.
        peak_rate: The highest learning rate.
        weight_decay: Of AdamW, decoupled.
        is_redrawn: Each batch draws new panels of the training items; else those of the training split come again.
    """

    network: str = "lenet5"
    epochs: int = 16
    batch_size: int = 32
    peak_rate: float = 4e-3
    weight_decay: float = 1e-4
    is_redrawn: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Single:
    """A trained network in evaluation mode, of the epoch with the best validation accuracy.

    Attributes:
        network: The network.
        validation_accuracy: Mean over the panels and bits, from 0 to 1.
        test_accuracy: The same of the test panels.
        best_epoch: From 1.
        seconds: That the training took, evaluation included.
    """

    network: nn.Module
    validation_accuracy: float
    test_accuracy: float
    best_epoch: int
    seconds: float


def accuracy(network: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Return the share of right bits, from 0 to 1; leaves the network in evaluation mode."""
    network.eval()
    with torch.inference_mode():
        logits = torch.cat([network(part) for part in inputs.split(_EVALUATION_BATCH)])
    return ((logits > 0) == (labels > 0.5)).float().mean().item()


def train_single(
    data: PanelData, task: str, recipe: Recipe, *, seed: int, report: Callable[[int, float], None] | None = None
) -> Single:
    """Train one network for one task.

    Args:
        data: Panels of 28x112.
        task: A name of ``data.tasks``.
        recipe: How.
        seed: Of the first weights and of the panels drawn; networks of two tasks start differently.
        report: Called after each epoch with its number, from 1, and its validation accuracy.
    """
    start = time.perf_counter()
    network, generator = _seeded(data, task, recipe, seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.peak_rate, weight_decay=recipe.weight_decay, fused=True)
    steps = recipe.epochs * -(-len(data.train.inputs) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak_rate, total_steps=steps)
    best, best_epoch, kept = -1.0, 0, {}
    for epoch in range(1, recipe.epochs + 1):
        network.train()
        for inputs, labels in _batches(data, task, recipe, generator):
            loss = F.binary_cross_entropy_with_logits(network(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        reached = accuracy(network, data.validation.inputs, data.validation.labels[task])
        if report is not None:
            report(epoch, reached)
        if reached > best:
            best, best_epoch = reached, epoch
            kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(kept)
    network.to(memory_format=torch.contiguous_format)
    return Single(
        network=network,
        validation_accuracy=best,
        test_accuracy=accuracy(network, data.test.inputs, data.test.labels[task]),
        best_epoch=best_epoch,
        seconds=time.perf_counter() - start,
    )


def _seeded(data: PanelData, task: str, recipe: Recipe, seed: int) -> tuple[nn.Module, torch.Generator]:
    """Return a new network and the generator of its batches, without touching the caller's random state."""
    own = len(data.tasks) * seed + list(data.tasks).index(task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(own)
        network = NETWORKS[recipe.network](len(data.tasks[task]))
    return network.to(memory_format=_memory_format(recipe)), torch.Generator().manual_seed(own)


def _memory_format(recipe: Recipe) -> torch.memory_format:
    """Return the faster format, channels last, but for ResNet-18.

    On a CPU, torch 2.13 crashes in the backward pass of a 1x1 convolution with stride 2 from 8 channels in that format.
    """
    return torch.contiguous_format if recipe.network == "resnet18" else torch.channels_last


def _batches(data: PanelData, task: str, recipe: Recipe, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of an epoch, equally many whether they are drawn anew or not."""
    for chosen in torch.randperm(len(data.train.inputs), generator=generator).split(recipe.batch_size):
        if recipe.is_redrawn:
            drawn = draw_panels(data.train_items, data.tasks, len(chosen), generator)
            inputs, labels = drawn.inputs, drawn.labels[task]
        else:
            inputs, labels = data.train.inputs[chosen], data.train.labels[task][chosen]
        yield inputs.contiguous(memory_format=_memory_format(recipe)), labels


def cached_single(data: PanelData, task: str, recipe: Recipe, *, seed: int, folder: Path) -> Single:
    """Return the network of ``train_single``, read from ``folder`` where an equal training has left it there."""
    path = folder / f"{recipe.network}-{task}-{seed}-{_fingerprint(data, task, recipe, seed)}.safetensors"
    if path.is_file():
        return _read(path, len(data.tasks[task]), recipe)
    single = train_single(data, task, recipe, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {field: getattr(single, field) for field in _FACTS}
    save_file(single.network.state_dict(), path, metadata={"facts": json.dumps(facts)})
    return single


_FACTS = ("validation_accuracy", "test_accuracy", "best_epoch", "seconds")


def _fingerprint(data: PanelData, task: str, recipe: Recipe, seed: int) -> str:
    """Return 16 hex digits of what decides the trained weights: recipe, data, first weights, training loop."""
    network, _ = _seeded(data, task, recipe, seed)
    digest = hashlib.sha256(json.dumps([asdict(recipe), seed, repr(network), torch.__version__]).encode())
    digest.update(inspect.getsource(train_single).encode())
    first = [data.train.inputs[:500], data.validation.inputs[:500], *network.state_dict().values()]
    for tensor in [*first, *data.train.labels.values(), *data.validation.labels.values()]:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path, outputs: int, recipe: Recipe) -> Single:
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    network = NETWORKS[recipe.network](outputs)
    network.load_state_dict(weights)
    return Single(network=network.eval(), **facts)
