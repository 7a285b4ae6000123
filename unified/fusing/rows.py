"""Samples of several datasets put together: each input once, with every label that any task has for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unified.dataset_problems import Inputs
from unified.errors import UnifiedError

NO_CLASS = -100  #: stands for "no label" among class indices; NaN does among numbers
_CHUNK_ROWS = 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Samples, and for some tasks their labels.

    Attributes:
        inputs: ``(rows, …)``, or such a tensor under the name of each of the models' inputs.
        labels: By task ``(rows, …)``: int64 with -100, or floating point with NaN, where the task has no label.
        keys: A hash of each row's inputs.
    """

    inputs: Inputs
    labels: dict[str, Tensor]
    keys: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, index: Tensor) -> Rows:
        """Return the rows at ``index``, int64 ``(n,)``; a copy."""
        return Rows(
            inputs=map_inputs(self.inputs, lambda tensor: tensor[index]),
            labels={task: labels[index] for task, labels in self.labels.items()},
            keys=tuple(self.keys[number] for number in index.tolist()),
        )

    def patterns(self) -> list[int]:
        """Return for each row which tasks have a label for it, as the bits of a number."""
        bits = torch.zeros(len(self), dtype=torch.int64)
        for number, labels in enumerate(self.labels.values()):
            bits |= has_label(labels).long() << number
        return bits.tolist()


def make_rows(inputs: Inputs, labels: Mapping[str, Tensor]) -> Rows:
    """Return rows with their keys; labels are made int64 or stay floating point."""
    return Rows(inputs=inputs, labels={task: _plain(values) for task, values in labels.items()}, keys=row_keys(inputs))


def join(sets: Iterable[Rows]) -> Rows:
    """Put samples of several datasets together.

    A row of a later set that is in an earlier one gives its labels to that; others are put at the end. Equal rows
    within one set stay apart.

    Raises:
        UnifiedError: If the inputs are not of one signature, or labels of one task are not alike.
    """
    first, *others = sets
    joined = first
    for other in others:
        joined = _join_two(joined, other)
    return joined


def signature(inputs: Inputs) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape without the rows of each input by name; ``""`` where it has none."""
    named = {"": inputs} if isinstance(inputs, Tensor) else inputs
    return {name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape[1:])) for name, tensor in named.items()}


def signature_text(inputs: Inputs) -> str:
    """Spell a signature, such as ``float32 (1, 28, 28)``."""
    parts = [
        f"{name + ': ' if name else ''}{dtype} ({', '.join(map(str, shape))})"
        for name, (dtype, shape) in signature(inputs).items()
    ]
    return ", ".join(parts)


def has_label(labels: Tensor) -> Tensor:
    """Return for each row whether it has a label, bool ``(rows,)``."""
    present = ~labels.isnan() if labels.is_floating_point() else labels != NO_CLASS
    return present.reshape(len(labels), -1).any(dim=1) if labels.ndim > 1 else present


def without_labels(rows: Rows, tasks: Collection[str]) -> Rows:
    """Return the rows as if they had no label of some tasks."""
    labels = {task: _grown(values[:0], len(rows)) if task in tasks else values for task, values in rows.labels.items()}
    return replace(rows, labels=labels)


def map_inputs(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """Apply a function to each tensor."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    return {name: function(tensor) for name, tensor in inputs.items()}


def row_keys(inputs: Inputs) -> tuple[bytes, ...]:
    """Return a hash of the values of each row."""
    tensors = [inputs] if isinstance(inputs, Tensor) else [inputs[name] for name in sorted(inputs)]
    keys: list[bytes] = []
    for start in range(0, len(tensors[0]), _CHUNK_ROWS):
        chunks = [_bytes_of(tensor[start : start + _CHUNK_ROWS]) for tensor in tensors]
        for row in zip(*chunks, strict=True):
            digest = hashlib.blake2b(digest_size=16)
            for part in row:
                digest.update(part)
            keys.append(digest.digest())
    return tuple(keys)


def _bytes_of(tensor: Tensor) -> Sequence[memoryview]:
    dense = tensor.detach().cpu().contiguous().reshape(len(tensor), -1).view(torch.uint8).numpy()
    return [row.data for row in dense]


def _join_two(old: Rows, new: Rows) -> Rows:
    if signature(old.inputs) != signature(new.inputs):
        names = [next(iter(rows.labels), "?") for rows in (old, new)]
        raise signature_refused(names[0], old.inputs, names[1], new.inputs)
    places = _places(old, new)
    fresh = [number for number, place in enumerate(places) if place is None]
    inputs = old.inputs
    if fresh:
        index = torch.tensor(fresh)
        inputs = _concatenated(old.inputs, new.inputs, index)
    size = len(old) + len(fresh)
    target = torch.tensor([place for place in places if place is not None] + list(range(len(old), size)))
    source = torch.tensor([number for number, place in enumerate(places) if place is not None] + fresh)
    labels = {task: _grown(values, size) for task, values in old.labels.items()}
    for task, values in new.labels.items():
        if task not in labels:
            labels[task] = _grown(values[:0], size)
        _check_alike(task, labels[task], values)
        labels[task][target] = values[source]
    return Rows(inputs=inputs, labels=labels, keys=old.keys + tuple(new.keys[number] for number in fresh))


def _places(old: Rows, new: Rows) -> list[int | None]:
    """Return for each new row the old one that it is, None if there is none or another new row took it."""
    if old.keys == new.keys:
        return list(range(len(new)))
    free: dict[bytes, list[int]] = {}
    for number, key in reversed(list(enumerate(old.keys))):
        free.setdefault(key, []).append(number)
    return [numbers.pop() if (numbers := free.get(key)) else None for key in new.keys]


def _concatenated(old: Inputs, new: Inputs, index: Tensor) -> Inputs:
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return torch.cat([old, new[index]])
    assert isinstance(old, dict), "signatures were compared"
    assert isinstance(new, dict), "signatures were compared"
    return {name: torch.cat([tensor, new[name][index]]) for name, tensor in old.items()}


def _grown(labels: Tensor, size: int) -> Tensor:
    """Return a copy with ``size`` rows, those that are new without a label."""
    grown = labels.new_full((size, *labels.shape[1:]), float("nan") if labels.is_floating_point() else NO_CLASS)
    grown[: len(labels)] = labels
    return grown


def _plain(labels: Tensor) -> Tensor:
    labels = labels.detach().cpu()
    return labels.float() if labels.is_floating_point() else labels.long()


def _check_alike(task: str, old: Tensor, new: Tensor) -> None:
    if (old.dtype, old.shape[1:]) != (new.dtype, new.shape[1:]):
        raise UnifiedError(
            f"task {task!r}: expected labels of one kind, got {old.dtype} {tuple(old.shape[1:])} "
            f"and {new.dtype} {tuple(new.shape[1:])}; write them alike in all its datasets"
        )


def signature_refused(one: str, one_inputs: Inputs, other: str, other_inputs: Inputs) -> UnifiedError:
    """Return the error for two tasks whose inputs are not alike."""
    return UnifiedError(
        f"tasks must take the same input signature: {one!r} {signature_text(one_inputs)}, "
        f"{other!r} {signature_text(other_inputs)}"
    )
