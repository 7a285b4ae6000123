"""One variant made and profiled in a process of its own, as people do without a framework: the baseline of the benchmark.

``python -m benchmarks.serving_child FOLDER parent`` trains the parent; ``… FOLDER variant NAME TASKS RATIO`` prunes it, removes
the heads that are not asked for, fine-tunes and profiles. FOLDER holds ``recipe.json`` and ``panels.pt``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.serving_panels import NETWORKS
from serving.data import TaskData
from serving.drafts import Draft
from serving.networks.heads import keep_tasks
from serving.networks.reading import read_network
from serving.profiling import profile
from serving.pruning import prune_network
from serving.records import Family, Source, TensorSpec
from serving.store import VariantStore
from serving.tasks import describe_tasks
from serving.training import TrainJob, train_plainly


def main() -> int:
    """Do what the command line says."""
    folder, what, *rest = sys.argv[1:]
    run = Run(Path(folder))
    if what == "parent":
        run.train_parent()
    else:
        name, tasks, ratio = rest
        run.make_variant(name, tuple(tasks.split("+")), float(ratio))
    return 0


class Run:
    """What is common to both: the recipe and the data, read anew by every process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe: dict[str, Any] = json.loads((folder / "recipe.json").read_text())
        parts = torch.load(folder / "panels.pt", weights_only=True)
        self.data = {part: TaskData(inputs=(inputs,), labels=labels) for part, (inputs, labels) in parts.items()}
        network = NETWORKS[self.recipe["network"]](self.recipe["seed"])
        self.examples = (self.data["train"].inputs[0][:2],)
        self.network = read_network(network, self.examples, label="parent")
        outputs = self.network.eval()(*self.examples)
        self.tasks = describe_tasks(outputs, self.data["train"])

    def train_parent(self) -> None:
        """Train the network of all tasks and write its weights."""
        self._train(self.network, [task.name for task in self.tasks], self.recipe["train_epochs"])
        torch.save(self.network.state_dict(), self.folder / "parent.pt")

    def make_variant(self, name: str, tasks: tuple[str, ...], ratio: float) -> None:
        """Prune, cut, fine-tune, store and profile one variant."""
        self.network.load_state_dict(torch.load(self.folder / "parent.pt", weights_only=True))
        pruned = prune_network(self.network, self.examples, ratio)
        network = keep_tasks(pruned.network, tasks)
        self._train(network, tasks, self.recipe["finetune_epochs"])
        family = Family(
            name="panels",
            inputs=(TensorSpec(name="input", dtype="FP32", shape=tuple(self.examples[0].shape[1:])),),
            tasks=tuple(self.tasks),
        )
        store = VariantStore.create(self.folder / "alone" / name, family)
        store.add(Draft(name=name, module=network.eval(), tasks=tasks, source=Source.PRUNED, ratio=ratio), self.examples)
        profile(store, "panels", self.data["validation"], threads=1)

    def _train(self, network: torch.nn.Module, tasks: tuple[str, ...] | list[str], epochs: int) -> None:
        wanted = tuple(task for task in self.tasks if task.name in tasks)
        job = TrainJob(name="job", network=network, tasks=wanted, data=self.data["train"], epochs=epochs,
                       batch_size=self.recipe["batch_size"])  # fmt: skip
        for trained in train_plainly([job]):
            if trained.problem:
                raise SystemExit(trained.problem)


if __name__ == "__main__":
    sys.exit(main())
