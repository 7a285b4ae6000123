"""A small zoo of models for tests: each entry gives the model, example inputs and batches of varying size.

``inputs`` is what ``unified.export`` takes: a tensor, a tuple of positional tensors or a dict of keyword tensors. A batch is
such inputs with a target for cross-entropy; :func:`loss_of` turns a model's answer to it into a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH_SIZES = (4, 8, 8, 3, 5, 1)

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model with what it eats: ``batches`` of (inputs, targets), and how to ``draw`` more of a size."""

    model: nn.Module
    inputs: Inputs
    batches: list[tuple[Inputs, Tensor]]
    draw: Callable[[int], tuple[Inputs, Tensor]]


def call(model: nn.Module, inputs: Inputs) -> object:
    """Call ``model`` the way its inputs are given: one tensor, positional, or by keyword."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def loss_of(output: object, target: Tensor) -> Tensor:
    """Cross-entropy of the logits in ``output`` (tensor, first of a tuple, or ``logits`` of a mapping)."""
    if isinstance(output, Mapping):
        output = output["logits"]
    logits = output[0] if isinstance(output, tuple) else output
    return F.cross_entropy(logits.flatten(0, -2), target.flatten())


def case(model: nn.Module, draw: Callable[[int], tuple[Inputs, Tensor]], sizes: tuple[int, ...] = BATCH_SIZES) -> Case:
    """Make a case from ``draw(batch_size) -> (inputs, targets)``."""
    return Case(model=model, inputs=draw(4)[0], batches=[draw(size) for size in sizes], draw=draw)


def images(channels: int, side: int, classes: int = 10) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Batches of random images (batch, channels, side, side)."""
    return lambda size: (torch.randn(size, channels, side, side), torch.randint(0, classes, (size,)))


def tokens(length: int, vocabulary: int, classes: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Batches of random token numbers (batch, length) with one class each."""
    return lambda size: (torch.randint(0, vocabulary, (size, length)), torch.randint(0, classes, (size,)))


def mlp() -> Case:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10))
    return case(model, lambda size: (torch.randn(size, 16), torch.randint(0, 10, (size,))))


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.bn2 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.4)
        self.fc1 = nn.Linear(256, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(self.relu(self.bn2(self.conv2(x))), 2)
        x = self.drop(torch.relu(self.fc1(x.view(x.size(0), -1))))
        return self.fc2(x)


def lenet() -> Case:
    torch.manual_seed(1)
    return case(LeNet(), images(1, 28))


class BasicBlock(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.downsample: nn.Module | None = None
        if stride != 1 or inner != outer:
            self.downsample = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet18(nn.Module):
    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inner = width
        for index in range(4):
            outer = width * 2**index
            first = BasicBlock(inner, outer, 1 if index == 0 else 2)
            self.add_module(f"layer{index + 1}", nn.Sequential(first, BasicBlock(outer, outer, 1)))
            inner = outer
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inner, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet18() -> Case:
    torch.manual_seed(2)
    return case(ResNet18(), images(3, 64))


class LSTMClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.lstm = nn.LSTM(16, 24, num_layers=2, batch_first=True, dropout=0.3, bidirectional=True)
        self.head = nn.Linear(48, 4)

    def forward(self, ids: Tensor) -> Tensor:
        out, _ = self.lstm(self.embed(ids))
        return self.head(out[:, -1])


def lstm() -> Case:
    torch.manual_seed(3)
    return case(LSTMClassifier(), tokens(12, 50, 4))


class Encoder(nn.Module):
    """A transformer encoder with a table of positions longer than the sequences."""

    def __init__(self, max_position: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.position = nn.Embedding(max_position, 32)
        self.register_buffer("position_ids", torch.arange(max_position).unsqueeze(0), persistent=False)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        positions = self.position_ids[:, : ids.size(1)]
        hidden = self.encoder(self.embed(ids) + self.position(positions))
        return self.head(hidden.mean(dim=1))


def encoder() -> Case:
    torch.manual_seed(4)
    return case(Encoder(), tokens(10, 50, 4))


def bert() -> Case:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        num_labels=3,
    )

    def draw(size: int) -> tuple[dict[str, Tensor], Tensor]:
        mask = (torch.arange(12) < torch.randint(4, 13, (size, 1))).long()
        ids = torch.randint(1, 60, (size, 12)) * mask
        return {"input_ids": ids, "attention_mask": mask}, torch.randint(0, 3, (size,))

    return case(BertForSequenceClassification(config), draw)


def gpt2() -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(6)
    config = GPT2Config(
        vocab_size=60,
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=2,
    )

    def draw(size: int) -> tuple[dict[str, Tensor], Tensor]:
        ids = torch.randint(0, 60, (size, 9))
        return {"input_ids": ids[:, :-1].contiguous()}, ids[:, 1:].contiguous()

    return case(GPT2LMHeadModel(config), draw)


ZOO: dict[str, Callable[[], Case]] = {
    "mlp": mlp,
    "lenet": lenet,
    "resnet18": resnet18,
    "lstm": lstm,
    "encoder": encoder,
    "bert": bert,
    "gpt2": gpt2,
}
