"""How good a fused model's answers are, and how sure that is: score, drop, agreement with the teacher (paper section 2.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fusion.search.data import Part
from fusion.search.outputs import float_tensors, scored_path
from fusion.search.tallies import TaskScore, tally_of
from fusion.search.tasks import Task

if TYPE_CHECKING:
    from fusion.graph.tree import FusedTree
    from fusion.search.teachers import TeacherCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How each task is answered, in the order of the tasks."""

    per_task: tuple[TaskScore, ...]

    @property
    def drops(self) -> dict[str, float]:
        """Drop by task."""
        return {score.task: score.drop for score in self.per_task}

    @property
    def errors(self) -> dict[str, float]:
        """Standard error of the drop, by task."""
        return {score.task: score.standard_error for score in self.per_task}

    @property
    def worst(self) -> TaskScore:
        """The task with the largest drop."""
        return max(self.per_task, key=lambda score: score.drop)

    @property
    def drop(self) -> float:
        """The largest drop of a task."""
        return self.worst.drop

    @property
    def resolution(self) -> float:
        """Smallest drop that the task with the fewest samples can show."""
        return max(score.resolution for score in self.per_task)


def clip_drop(drop: float) -> float:
    """Bring a drop into [0, 1], for formulas that need a share."""
    return min(1.0, max(0.0, drop))


def evaluate(
    tree: FusedTree,
    part: Part,
    teacher: TeacherCache,
    tasks: Sequence[Task],
    *,
    batch_size: int = 256,
    label_free: bool = False,
    known: Mapping[str, tuple[int, int]] | None = None,
) -> Scores:
    """Score a fused model on a part of the data.

    An answer that is not finite counts as wrong; a score of the user's that is not finite as a drop of 1.

    Args:
        tree: The model; its mode is put back afterwards.
        part: The samples. Labels that are missing (-100, NaN, or no labels for a task at all) do not count.
        teacher: The original models' answers.
        tasks: Those to be scored, of the tree's.
        batch_size: Samples of one forward pass.
        label_free: Look at no label.
        known: Steps that need not run, as in `TeacherCache.batch`.

    Raises:
        FusionError: The output that a task scores does not fit its labels, or cannot be told.
    """
    tallies = {task.name: tally_of(task, part, teacher, label_free=label_free) for task in tasks}
    device = next((parameter.device for parameter in tree.parameters()), torch.device("cpu"))
    was_training = tree.training
    tree.eval()
    try:
        with torch.inference_mode():
            for index in torch.arange(len(part)).split(batch_size):
                batch = teacher.batch(part, index, tasks=(), known=known, device=device)
                outputs = tree.run(batch.inputs, tasks=[task.name for task in tasks], known=batch.known)
                for task in tasks:
                    found = float_tensors(outputs[task.name], len(index))
                    tallies[task.name].add(index, found[scored_path(found.keys(), task)].cpu())
    finally:
        tree.train(was_training)
    return Scores(per_task=tuple(tallies[task.name].close() for task in tasks))
