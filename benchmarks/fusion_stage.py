"""The models of a task set and what all searches on them share: samples, blocks, a table of costs, the last count of drops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.fusion_tasks import Samples, TaskSet
from fusion.search.absgraph import Graph, original
from fusion.search.build import space_of
from fusion.search.data import FusionData, Part, SealedPart
from fusion.search.flops import block_flops
from fusion.search.measuring import measure_table
from fusion.search.setting import parsed
from fusion.search.tasks import Task


class Stage:
    """A task set with its trained models.

    Args:
        tasks: The set.
        models: By task.
        measure_seconds: For the table of costs.
    """

    def __init__(self, tasks: TaskSet, models: Mapping[str, nn.Module], measure_seconds: float) -> None:
        self.tasks = tasks
        self.models = models
        self.sequences = parsed(self.search_tasks, self.data.train, torch.device("cpu"))
        inputs = (tasks.train.inputs[:64],)
        self.space = space_of(self.sequences, [block_flops(one, inputs) for one in self.sequences], stitches=True)
        self.original = original(self.space)
        self._table = measure_table(
            self.space,
            self.sequences,
            inputs,
            batch_size=1,
            max_seconds=measure_seconds,
            generator=torch.Generator().manual_seed(0),
        )

    @property
    def search_tasks(self) -> list[Task]:
        """The models as a search takes them."""
        return [Task(name=name, model=model, lr=self.tasks.lr) for name, model in self.models.items()]

    @property
    def data(self) -> FusionData:
        """The samples as a search takes them; the held-out part is sealed anew."""
        train, validation, test = (self._part(each) for each in (self.tasks.train, self.tasks.validation, self.tasks.test))
        return FusionData(train=train, validation=validation, test=SealedPart(test))

    def yardstick(self, graph: list[list[Any]]) -> float:
        """Return the speedup of a graph of any search, given as its plain values, by one table for all searches."""
        return self._table.predict(self.original) / self._table.predict(Graph.from_json(self.space, graph))

    def held_out(self, module: nn.Module) -> tuple[dict[str, float], dict[str, float]]:
        """Return by task what a fused model loses on the held-out part: by the score that searches go by, and in accuracy."""
        losses: dict[str, float] = {}
        accuracies: dict[str, float] = {}
        answers = classes(module, self.tasks.test.inputs, list(self.models))
        for task, own in answers.items():
            labels, teacher = self.tasks.test.labels[task], self._teacher_classes[task]
            there = labels != -100
            lost = int((teacher[there] == labels[there]).sum()) - int((own[there] == labels[there]).sum())
            accuracies[task] = lost / int(there.sum())
            losses[task] = accuracies[task] if self.tasks.has_labels else int((teacher != own).sum()) / len(own)
        return losses, accuracies

    @cached_property
    def _teacher_classes(self) -> dict[str, Tensor]:
        return {task: classes(model, self.tasks.test.inputs, [task])[task] for task, model in self.models.items()}

    def _part(self, samples: Samples) -> Part:
        labels = {task: samples.labels[task] for task in self.models} if self.tasks.has_labels else {}
        return Part(inputs=samples.inputs, labels=labels)


def classes(module: nn.Module, inputs: Tensor, tasks: Sequence[str], batch_size: int = 512) -> dict[str, Tensor]:
    """Return by task the classes that a model chooses, ``(N,)``; a model of one task answers with a tensor."""
    with torch.inference_mode():
        answers = [module.eval()(batch) for batch in inputs.split(batch_size)]
    rows = [answer if isinstance(answer, dict) else dict.fromkeys(tasks, answer) for answer in answers]
    return {task: torch.cat([row[task].argmax(1) for row in rows]) for task in tasks}
