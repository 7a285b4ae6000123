"""One job for each form of model that needs no trust, all in one batch on scikit-learn's digits.

    python examples/model_forms.py [FOLDER]

Each form is data: it is checked, and nothing of it is run. docs/job.md says more, "The model".
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

import unified
from unified.cli import main as unified_command

LAYERS = [
    {"name": "Flatten"},
    {"name": "Linear", "in_features": 64, "out_features": 32},
    {"name": "ReLU"},
    {"name": "Linear", "in_features": 32, "out_features": 10},
]
VIT = ViTConfig(
    image_size=8, patch_size=4, num_channels=1, num_labels=10,
    hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
)  # fmt: skip


class Residual(nn.Module):
    """A class of one's own: its code stays here, its graph goes into the archive."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.flatten(1)
        return self.head(pixels + self.inner(pixels).relu())


def new_job(root: Path, name: str, model: str, **fields: object) -> Path:
    """Write ``job.json`` and return the path for the model."""
    (root / name).mkdir(parents=True)
    job = {
        "name": name, "model": model, "data": {"train": "../data/train.pt", "test": "../data/test.pt"},
        "loss": "CrossEntropyLoss", "metrics": ["accuracy"], "optimizer": {"name": "AdamW", "lr": 0.005},
        "epochs": 5, "batch_size": 32, **fields,
    }  # fmt: skip
    (root / name / "job.json").write_text(json.dumps(job, indent=2))
    return root / name / model


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "model-forms")
    if folder.exists():
        sys.exit(f"{folder} is there already: delete it, or name another folder")
    jobs = folder / "jobs"
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    unified.export(Residual(), torch.zeros(2, 1, 8, 8), new_job(jobs, "archive", "model.umodel"))
    torch.save(network, new_job(jobs, "module", "model.pt"))
    weights = network.state_dict()
    torch.save(weights, new_job(jobs, "weights", "weights.pt", architecture={"layers": LAYERS}))
    save_file(weights, new_job(jobs, "safetensors", "weights.safetensors", architecture={"layers": LAYERS}))
    ViTForImageClassification(VIT).save_pretrained(new_job(jobs, "transformers", "vit"))

    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target)
    (jobs / "data").mkdir()
    torch.save((images[:1500], labels[:1500]), jobs / "data" / "train.pt")
    torch.save((images[1500:], labels[1500:]), jobs / "data" / "test.pt")
    sys.exit(unified_command(["run", str(jobs), "--out", str(folder / "results")]))
