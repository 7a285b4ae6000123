"""A queue that goes on by itself: start the service, hand in jobs from Python, be killed, and get the models back.

python examples/job_queue.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import unified

digits = load_digits()
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
torch.manual_seed(0)
models = {
    "narrow": nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)),
    "wide": nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)),
}


def job(name: str) -> unified.JobSpec:
    return unified.JobSpec(
        name=name,
        user="ada",
        model=models[name],
        data={"train": (images[:1500], labels[:1500]), "test": (images[1500:], labels[1500:])},
        loss="CrossEntropyLoss",
        metrics=["accuracy"],
        optimizer={"name": "AdamW", "lr": 0.005},
        epochs=10,
        batch_size=32,
    )


def serve(root: Path) -> subprocess.Popen[bytes]:
    """Start the service as an operator would: ``unified serve --root ROOT``."""
    return subprocess.Popen([sys.executable, "-m", "unified", "serve", "--root", str(root), "--slots", "1"])


with tempfile.TemporaryDirectory() as folder, unified.Client(Path(folder) / "queue") as queue:
    ids = queue.submit_all([job(name) for name in models])  # on disk: nothing that happens from here on loses them
    service = serve(Path(folder) / "queue")
    try:
        for result in queue.wait(ids[:1]):
            print(f"{result.name}: {result.state}; the service is killed")
        service.kill()
        service.wait()
        service = serve(Path(folder) / "queue")  # takes up what the first one left
        for result in queue.wait(ids):
            result.load_into(models[result.name])
            print(f"{result.name}: {result.state}, accuracy {result.metrics['accuracy']:.2f}")
    finally:
        service.terminate()
        service.wait()
