"""The data that variants are trained on, and what is held out to score them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from serving.data import TaskData
from unified.errors import UnifiedError
from unified.fusing.data_files import from_objects, read_data
from unified.fusing.parting import part
from unified.fusing.rows import Rows, join
from unified.quantities import plural


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Samples by part.

    Attributes:
        train: To train on.
        held_out: To score variants by.
        notes: What was done to have them.
    """

    train: Rows
    held_out: Rows
    notes: tuple[str, ...] = ()


def read_samples(data: Any, *, seed: int) -> Samples:
    """Return the samples of a path, or of what a caller holds in Python, in the forms that fusing takes.

    Held out is the validation part, without one the test part, and without either a fifth of the training part.

    Args:
        data: See :func:`unified.fusing.data_files.read_data`.
        seed: Of the draw.

    Raises:
        InvalidSubmission: With what is wrong with the data.
    """
    rows = read_data(Path(data), None) if isinstance(data, str | Path) else from_objects(data, None)
    held_out = rows.get("validation") or rows.get("test")
    if held_out is not None:
        return Samples(train=rows["train"], held_out=held_out)
    parts = part(rows["train"], None, None, seed=seed)
    if not len(parts.train) + len(parts.validation):
        raise UnifiedError("expected at least two samples that differ, one to train on and one to score variants by; got one")
    note = f"no validation data: {plural(len(parts.test), 'sample')} of the training data are held out to score variants"
    return Samples(train=join([parts.train, parts.validation]), held_out=parts.test, notes=(note,))


def task_data(rows: Rows, tasks: Collection[str], names: tuple[str, ...] | None) -> TaskData:
    """Return rows as variants take them.

    Args:
        rows: Samples and labels.
        tasks: Whose labels are wanted, as far as there are any.
        names: Of the inputs, in the network's order; None where it takes them by position.

    Raises:
        UnifiedError: If the inputs are not the network's.
    """
    labels = {task: values for task, values in rows.labels.items() if task in tasks}
    if isinstance(rows.inputs, Tensor):
        return TaskData(inputs=(rows.inputs,), labels=labels)
    order = names or tuple(rows.inputs)
    if set(order) != set(rows.inputs):
        raise UnifiedError(f"expected samples of the inputs {', '.join(order)}; got {', '.join(rows.inputs)}")
    return TaskData(inputs=tuple(rows.inputs[name] for name in order), labels=labels)
