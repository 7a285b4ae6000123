"""One hybrid with members of two domains: a ``transformers`` text classifier between two vision models.

    python examples/text_and_vision.py

The texts are the digits' images written out ("pixels" as words), so that the example needs no download.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import unified

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)
labels = torch.tensor(digits.target)
words = images.flatten(1).long() + 1  # 64 words of a vocabulary of 17, and 0 for padding

torch.manual_seed(0)
config = BertConfig(
    vocab_size=18, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=64, num_labels=10,
)  # fmt: skip
reader = BertForSequenceClassification(config)
seer = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
glancer = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 10))


def split(inputs: torch.Tensor | dict[str, torch.Tensor]) -> dict[str, object]:
    def part(chosen: slice) -> tuple[object, torch.Tensor]:
        if isinstance(inputs, dict):
            return {name: tensor[chosen] for name, tensor in inputs.items()}, labels[chosen]
        return inputs[chosen], labels[chosen]

    return {"train": part(slice(0, 600)), "test": part(slice(600, 800))}


pictures = split(images.unsqueeze(1) / 16)
texts = split({"input_ids": words, "attention_mask": torch.ones_like(words)})  # passed as keyword arguments
settings = {"loss": "CrossEntropyLoss", "metrics": ["accuracy"], "batch_size": 32}
jobs = [
    unified.JobSpec(name="seer", model=seer, data=pictures, optimizer={"name": "SGD", "lr": 0.1}, epochs=6, **settings),
    unified.JobSpec(
        name="reader", model=reader, data=texts, optimizer={"name": "AdamW", "lr": 0.003}, epochs=12,
        clip_grad_norm=1.0, precision="bf16", **settings,
    ),
    unified.JobSpec(name="glancer", model=glancer, data=pictures, optimizer={"name": "Adam", "lr": 0.03}, epochs=12, **settings),
]  # fmt: skip

# One slot: all three are members of one hybrid, and take turns of 20 steps.
with unified.Engine(scheduler="round-robin:quantum=20", slots=1) as engine:
    engine.submit_all(jobs)
    for result in engine.run():
        print(f"{result.name}: accuracy {result.metrics['accuracy']:.2f}, loss {result.metrics['test_loss']:.2f}")
