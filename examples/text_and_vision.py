"""One hybrid with members of two domains: a ``transformers`` text classifier between two vision models.

    python examples/text_and_vision.py

The pictures are scikit-learn's digits. The texts are lines of Python's own documentation, to be told apart by their subject,
numbers or networks; so nothing is downloaded.
"""

from __future__ import annotations

import zlib
from importlib import import_module

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import unified

SUBJECTS = [
    ["statistics", "random", "fractions", "decimal", "math", "cmath", "numbers", "colorsys"],
    ["socket", "ssl", "http.client", "email.message", "urllib.request", "smtplib", "ftplib", "socketserver"],
]
VOCABULARY, LENGTH = 4000, 24


def read_lines(module: str) -> list[str]:
    members = vars(import_module(module)).values()
    documents = [str(getattr(member, "__doc__", "")) for member in members] + [str(import_module(module).__doc__)]
    return [line for text in sorted(set(documents)) for line in text.splitlines() if len(line.split()) > 4]


def encode(line: str) -> Tensor:
    words = [1 + zlib.crc32(word.encode()) % (VOCABULARY - 1) for word in line.lower().split()[:LENGTH]]
    return torch.tensor(words + [0] * (LENGTH - len(words)))


def parts(inputs: Tensor | dict[str, Tensor], labels: Tensor) -> dict[str, object]:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    take = {"train": order[: len(order) * 3 // 4], "test": order[len(order) * 3 // 4 :]}
    if isinstance(inputs, dict):
        return {split: ({name: value[rows] for name, value in inputs.items()}, labels[rows]) for split, rows in take.items()}
    return {split: (inputs[rows], labels[rows]) for split, rows in take.items()}


digits = load_digits()
pictures = parts(torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target))
pairs = [(encode(line), subject) for subject, names in enumerate(SUBJECTS) for name in names for line in read_lines(name)]
tokens, subjects = torch.stack([tokens for tokens, _ in pairs]), torch.tensor([subject for _, subject in pairs])
texts = parts({"input_ids": tokens, "attention_mask": (tokens != 0).long()}, subjects)  # keyword arguments of the model

torch.manual_seed(0)
reader = BertForSequenceClassification(BertConfig(
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=LENGTH, num_labels=2,
))  # fmt: skip
seer = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
glancer = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 10))
settings = {"loss": "CrossEntropyLoss", "metrics": ["accuracy"], "batch_size": 32, "epochs": 6}
jobs = [
    unified.JobSpec(name="seer", model=seer, data=pictures, optimizer={"name": "SGD", "lr": 0.1}, **settings),
    unified.JobSpec(
        name="reader", model=reader, data=texts, optimizer={"name": "AdamW", "lr": 0.002},
        clip_grad_norm=1.0, precision="bf16", **settings,
    ),
    unified.JobSpec(name="glancer", model=glancer, data=pictures, optimizer={"name": "Adam", "lr": 0.03}, **settings),
]  # fmt: skip

# One slot: all three are members of one hybrid, and take turns of 20 steps.
with unified.Engine(scheduler="round-robin:quantum=20", slots=1) as engine:
    engine.submit_all(jobs)
    for result in engine.run():
        print(f"{result.name}: accuracy {result.metrics['accuracy']:.2f} after {result.metrics['step']:.0f} steps")
