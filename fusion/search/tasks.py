"""What a fused model has to answer: the tasks, each a trained model and the way its output is scored (paper section 2.1)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fusion.graph.errors import FusionError

Score = Callable[[Tensor, Tensor], "float | Tensor"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]*")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """One task: a trained model, and how good an answer to it is.

    Args:
        name: Letters, digits, `_` and `-`; it names the output of the fused model and its files.
        model: The trained model, the teacher of this task. It is never changed.
        output: The part of the output that is scored: a key, an index, or a dotted path of both ("0.logits").
            None: the output's only float tensor.
        score: `score(output, labels)`, higher is better: a number, or a tensor `(samples,)` whose mean is the score, which
            allows a paired standard error. None: accuracy with integer labels, else agreement with the teacher.
        max_drop: Largest score that this task may lose, >= 0. None: the thresholds of the search.
        lr: Learning rate with which the model was trained, > 0. None: unknown.
        dense: True: outputs are values, compared by their distance; False: class scores, compared by the best class. None:
            class scores where the labels are integers or, without labels, where the output is `(samples, classes >= 2)`.
    """

    name: str
    model: nn.Module
    output: str | int | None = None
    score: Score | None = None
    max_drop: float | None = None
    lr: float | None = None
    dense: bool | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise FusionError(f"task {self.name!r}: a name is letters, digits, '_' and '-'; it also names files")
        if self.max_drop is not None and not self.max_drop >= 0:
            raise FusionError(f"task '{self.name}': max_drop is {self.max_drop}, expected a number >= 0, e.g. 0.01")
        if self.lr is not None and not self.lr > 0:
            raise FusionError(f"task '{self.name}': lr is {self.lr}, expected a number > 0, e.g. 1e-3")


def check_tasks(tasks: Sequence[Task]) -> None:
    """Refuse fewer than two tasks, or two of one name.

    Raises:
        FusionError: With the number of tasks, or the name that is there twice.
    """
    if len(tasks) < 2:
        raise FusionError(f"fusion needs at least 2 tasks, got {len(tasks)}; a single model has nothing to share with")
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise FusionError(f"two tasks are called '{name}'; give each a name of its own")


def learning_rate(tasks: Sequence[Task], default: float = 1e-3) -> float:
    """Choose the smallest rate that the models were trained with (paper section 6.1); `default` where none is known."""
    return min((task.lr for task in tasks if task.lr is not None), default=default)
