"""One network of three tasks becomes eight variants, and a server answers each query with the one that suits it best.

    python examples/serve_variants.py [FOLDER]

Builds variants of a network for scikit-learn's digits, measures them here, serves them by the Open Inference Protocol and asks
over HTTP. The folder FOLDER/variants can be served again: ``unified serve-models FOLDER/variants``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import unified
from serving.profiling import ProfileOptions, profile
from serving.store import VariantStore

QUERIES = (
    {"tasks": "digit"},
    {"tasks": "digit", "latency_ms": 20, "min_accuracy": 0.6},
    {"tasks": "digit,parity", "min_accuracy": 0.5, "accuracy_mode": "average"},
    {"latency_ms": 50},
    {"latency_ms": 0.001},
    {"latency_ms": 0.001, "on_mishit": "best_effort"},
)


class Digits(nn.Module):
    """A shared encoder and a head for each task."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten()
        )
        self.heads = nn.ModuleDict({"digit": nn.Linear(512, 10), "parity": nn.Linear(512, 2), "ink": nn.Linear(512, 1)})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.encoder(image)
        return {task: head(features) for task, head in self.heads.items()}


def ask(client: httpx.Client, images: Tensor, parameters: dict[str, str | float]) -> httpx.Response:
    """Send some images; any client of the Open Inference Protocol does the same."""
    data = images.flatten().tolist()
    entry = {"name": "image", "datatype": "FP32", "shape": list(images.shape), "data": data}
    return client.post("/v2/models/digits/infer", json={"inputs": [entry], "parameters": parameters})


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "digits-served") / "variants"
    digits = load_digits()
    images, target = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target)
    labels = {"digit": target, "parity": target % 2, "ink": images.mean((1, 2, 3)) * 10}
    torch.manual_seed(0)
    how = {"ratios": (0.0, 0.7), "systems": "multi", "train_epochs": 3, "finetune_epochs": 1, "batch_size": 16}
    unified.build_variants(Digits(), (images, labels), folder, name="digits", **how)
    profile(VariantStore.open(folder), "digits", options=ProfileOptions(batches=(1, 8), max_seconds=0.1))

    command = [sys.executable, "-m", "unified", "serve-models", str(folder), "--http", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        address = next(line for line in server.stderr if "ready:" in line).split(" on ")[-1].split(";")[0]
        with httpx.Client(base_url=address, timeout=60) as client:
            names = {one["id"]: one["name"] for one in client.get("/v2/models/digits/variants").json()["variants"]}
            for query in QUERIES:
                answer = ask(client, images[:2], query)
                content = answer.json()
                if answer.status_code != 200:
                    print(f"{query}: {answer.status_code} {content['error']}")
                    continue
                by, told = " + ".join(names[key] for key in content["model_version"].split("+")), content["parameters"]
                print(f"{query}: {by}, {told['measured_latency_ms']:.1f} ms, accuracy {told['accuracy']:.3f}")
        server.terminate()
