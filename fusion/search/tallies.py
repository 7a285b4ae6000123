"""Counting one task's answers, sample by sample: right, as the teacher's, or as the user's function says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from fusion.graph.errors import FusionError
from fusion.search.classes import class_points
from fusion.search.data import Part, labelled
from fusion.search.tasks import Score, Task
from fusion.search.tensor_store import Stored

if TYPE_CHECKING:
    from fusion.search.teachers import TeacherCache

JACKKNIFE_GROUPS = 10
"""Groups that are left out in turn to see how much a user's score varies."""


class ScoreKind(StrEnum):
    """What a score says."""

    ACCURACY = "accuracy"  # share of labels that are the best class
    AGREEMENT = "agreement"  # share of answers whose best class is the teacher's
    CLOSENESS = "closeness"  # 1 - distance to the teacher's values, in units of their mean size
    CALLABLE = "callable"  # the user's


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """How one task is answered.

    Args:
        task: Its name.
        kind: What `score` says.
        score: Of the fused model, higher is better.
        teacher_score: Of the original model on the same samples.
        drop: `teacher_score - score`; negative if the fused model is better.
        standard_error: Of the drop over samples, paired: both models answered the same ones.
        agreement: With the teacher, on the same samples: for classes the drop in accuracy is at most `1 - agreement`.
        num_samples: Samples that count.
    """

    task: str
    kind: ScoreKind
    score: float
    teacher_score: float
    drop: float
    standard_error: float
    agreement: float
    num_samples: int

    @property
    def resolution(self) -> float:
        """Smallest step of a share of the samples."""
        return 1 / self.num_samples


class Tally(Protocol):
    """Is given a model's answers batch by batch, then sums up."""

    def add(self, index: Tensor, output: Tensor) -> None:
        """Count the output `(batch, …)`, on the CPU, for the samples at `index` `(batch,)`."""
        ...

    def close(self) -> TaskScore:
        """Sum up."""
        ...


def tally_of(task: Task, part: Part, teacher: TeacherCache, *, label_free: bool) -> Tally:
    """Choose how a task is scored on a part: see `Task`; where there is no label, by agreement with the teacher."""
    theirs = teacher.scored(part, task)
    labels = None if label_free else part.labels.get(task.name)
    if labels is not None and not labelled(labels).any():
        labels = None
    labels = None if labels is None else labels.cpu()
    dense = is_dense(task, theirs.shape, labels)
    unit = teacher.mean_size(theirs) if dense else 1.0
    if labels is not None and task.score is not None:
        return CallableTally(task, theirs, labels, task.score, unit if dense else None)
    if labels is not None and not dense and not labels.is_floating_point():
        return PointsTally(task, theirs, ScoreKind.ACCURACY, labels=labels, unit=None)
    return PointsTally(
        task, theirs, ScoreKind.CLOSENESS if dense else ScoreKind.AGREEMENT, labels=None, unit=unit if dense else None
    )


class PointsTally:
    """Counts points per sample: for classes one for each right element, for values its closeness.

    Args:
        task: The task.
        teacher: The teacher's output on all samples.
        kind: What is counted.
        labels: `(samples, …)`, class numbers; None where the teacher says what is right.
        unit: Mean size of the teacher's values; None: the outputs are class scores.
    """

    def __init__(self, task: Task, teacher: Stored, kind: ScoreKind, *, labels: Tensor | None, unit: float | None) -> None:
        self._task, self._teacher, self._kind = task, teacher, kind
        self._labels, self._unit = labels, unit
        self._points = torch.zeros(4, len(teacher), dtype=torch.float64)  # student's, teacher's, agreement, largest possible

    def add(self, index: Tensor, output: Tensor) -> None:
        """Count a batch."""
        theirs = _teacher_rows(self._task, self._teacher, index, output)
        labels = None if self._labels is None else self._labels[index]
        if self._unit is not None:
            ours, most = _closeness(output, theirs, self._unit)
            points = (ours, most, ours, most)
        else:
            points = class_points(self._task, output, theirs, labels)
        self._points[:, index] = torch.stack([row.double() for row in points])

    def close(self) -> TaskScore:
        """Sum up."""
        ours, teachers, agreed, most = self._points
        total = float(most.sum())
        return TaskScore(
            task=self._task.name,
            kind=self._kind,
            score=float(ours.sum()) / total,
            teacher_score=float(teachers.sum()) / total,
            drop=float((teachers - ours).sum()) / total,
            standard_error=paired_error(teachers - ours, most),
            agreement=float(agreed.sum()) / total,
            num_samples=int((most > 0).sum()),
        )


class CallableTally:
    """Collects the outputs of labelled samples for a user's score.

    Args:
        task: The task.
        teacher: The teacher's output on all samples.
        labels: `(samples, …)`.
        score: The user's function.
        unit: As in `PointsTally`, for the agreement.
    """

    def __init__(self, task: Task, teacher: Stored, labels: Tensor, score: Score, unit: float | None) -> None:
        self._task, self._teacher, self._labels, self._score = task, teacher, labels, score
        self._agreement = PointsTally(task, teacher, ScoreKind.AGREEMENT, labels=None, unit=unit)
        self._has_label = labelled(labels).flatten(1).any(dim=1) if labels.ndim > 1 else labelled(labels)
        self._chunks: list[tuple[Tensor, Tensor]] = []

    def add(self, index: Tensor, output: Tensor) -> None:
        """Keep the labelled rows of a batch."""
        kept = self._has_label[index]
        if kept.any():
            self._agreement.add(index[kept], output[kept])
            self._chunks.append((index[kept], output[kept]))

    def close(self) -> TaskScore:
        """Call the user's function on all rows, and on parts of them for the standard error."""
        index = torch.cat([rows for rows, _ in self._chunks])
        outputs = torch.cat([rows for _, rows in self._chunks])
        theirs, labels = self._teacher.gather(index), self._labels[index]
        ours, teachers = self._score(outputs, labels), self._score(theirs, labels)
        if isinstance(ours, Tensor) and isinstance(teachers, Tensor) and ours.ndim == 1 and len(ours) == len(index):
            error = paired_error(teachers.double() - ours.double(), torch.ones(len(index)))
        else:
            error = _jackknife_error(lambda rows: self._drop(outputs[rows], theirs[rows], labels[rows]), len(index))
        score, teacher_score = _number(ours), _number(teachers)
        if error is None:
            error = math.sqrt(_share(score) * (1 - _share(score)) / len(index))
        if not math.isfinite(teacher_score):
            raise FusionError(
                f"task '{self._task.name}': its score of the original model is {teacher_score}; check Task(score=...)"
            )
        score = score if math.isfinite(score) else teacher_score - 1.0
        return replace(
            self._agreement.close(),
            kind=ScoreKind.CALLABLE,
            score=score,
            teacher_score=teacher_score,
            drop=teacher_score - score,
            standard_error=error,
        )

    def _drop(self, outputs: Tensor, theirs: Tensor, labels: Tensor) -> float:
        return _number(self._score(theirs, labels)) - _number(self._score(outputs, labels))


def paired_error(differences: Tensor, most: Tensor) -> float:
    """Standard error of `sum(differences) / sum(most)` over samples, by linearising the ratio.

    Args:
        differences: Points that the teacher has more than the student, `(samples,)`.
        most: Largest possible points of each sample, `(samples,)`; samples with 0 do not count.
    """
    counts = most > 0
    differences, most = differences[counts].double(), most[counts].double()
    num_samples = len(most)
    if num_samples < 2:
        return 1.0  # one sample says nothing about others
    ratio = differences.sum() / most.sum()
    spread = (differences - ratio * most).square().sum() * num_samples / (num_samples - 1)
    return float(spread.sqrt() / most.sum())


def _jackknife_error(drop: Callable[[Tensor], float], num_samples: int) -> float | None:
    """Leave out each of some groups of samples in turn; None where a score of the rest is no number."""
    num_groups = min(JACKKNIFE_GROUPS, num_samples)
    if num_groups < 2:
        return 1.0
    rows = torch.arange(num_samples)
    try:
        drops = torch.tensor([drop(rows[rows % num_groups != group]) for group in range(num_groups)], dtype=torch.float64)
    except Exception:  # noqa: BLE001 - a user's score that cannot do with fewer samples is still a score
        return None
    error = float(((num_groups - 1) / num_groups * (drops - drops.mean()).square().sum()).sqrt())
    return error if math.isfinite(error) else None


def is_dense(task: Task, shape: tuple[int, ...], labels: Tensor | None) -> bool:
    """Whether an output of a shape ``(samples, ...)`` is values, compared by their distance; else it is scores of classes."""
    if task.dense is not None:
        return task.dense
    if labels is not None:
        return labels.is_floating_point()
    return not (len(shape) == 2 and shape[1] >= 2)


def _teacher_rows(task: Task, teacher: Stored, index: Tensor, output: Tensor) -> Tensor:
    theirs = teacher.gather(index)
    if output.shape != theirs.shape:
        raise FusionError(f"task '{task.name}': output {tuple(output.shape)}, expected {tuple(theirs.shape)} as the original")
    return theirs


def _closeness(output: Tensor, theirs: Tensor, unit: float) -> tuple[Tensor, Tensor]:
    distances = (output.double() - theirs.double()).abs().flatten(1) if output.ndim > 1 else (output - theirs).abs()[:, None]
    points = (1 - distances / unit).sum(dim=1)
    most = torch.full_like(points, distances.shape[1])
    return points.nan_to_num(nan=0.0, neginf=0.0), most


def _number(score: float | Tensor) -> float:
    return float(score.double().mean()) if isinstance(score, Tensor) else float(score)


def _share(score: float) -> float:
    return min(1.0, max(0.0, score)) if math.isfinite(score) else 0.5
