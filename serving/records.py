"""What is served: families of variants, and what is known of each.

Words, as in MTLsys (Khaund, Miano): a *family* is all variants of one input and set of tasks, and the model that clients
name; a *variant* is one set of weights that answers a fixed set of tasks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

from serving.errors import ServingError

_LARGEST = 1 << 63  # of bytes, parameters, FLOPs and dimensions
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")

#: OIP's name of each dtype that an input or output may have -> torch's.
DTYPES: Mapping[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}


class Kind(StrEnum):
    """What a task is, which decides its loss and its score."""

    CLASSIFICATION = "classification"
    MULTILABEL = "multilabel"
    REGRESSION = "regression"


class Source(StrEnum):
    """How a variant came about."""

    PRUNED = "pruned"  #: all tasks, pruned (ratio 0 included), heads never removed
    HEAD_REMOVED = "head_removed"  #: some tasks of a multi-task parent, the other heads removed
    SINGLE = "single"  #: one task, trained alone from the beginning: system C
    FUSED = "fused"  #: of a search over shared features
    SPECIALISED = "specialised"  #: cut from a pruning-aware merged network
    GIVEN = "given"  #: handed in as it is


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """An input or output: ``shape`` is that of one sample; ``dtype`` a key of :data:`DTYPES`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ServingError(f"{self.name}: expected one of the dtypes {', '.join(DTYPES)}; got {self.dtype!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """One task of a family.

    Attributes:
        name: Letters, digits, ``_``, ``-`` and ``.``; also the name of its output.
        kind: Its loss is CrossEntropyLoss, BCEWithLogitsLoss or MSELoss, by kind.
        shape: Of its output for one sample: ``(classes,)``, ``(labels,)``, ``(values,)`` or ``()``.
        weight: Of its loss in the sum that variants of several tasks are trained by, > 0.
        variance: Of its training targets (regression), by which its score is scaled; 1 for other kinds.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    weight: float = 1.0
    variance: float = 1.0

    def __post_init__(self) -> None:
        check_name(self.name, "a task's name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What clients name as a model.

    Attributes:
        name: As clients write it.
        inputs: In the order in which a network takes them.
        tasks: In the order of the outputs.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    tasks: tuple[TaskSpec, ...]

    def __post_init__(self) -> None:
        check_name(self.name, "a family's name")
        names = [task.name for task in self.tasks]
        if not names or len(set(names)) != len(names):
            raise ServingError(f"family {self.name!r}: expected tasks, each with a name of its own; got {names}")

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of all tasks, in order."""
        return tuple(task.name for task in self.tasks)

    def task(self, name: str) -> TaskSpec:
        """Return the task of that name; raises ServingError if there is none."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise ServingError(f"family {self.name!r} has no task {name!r}; it has {', '.join(self.task_names)}")

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return what :meth:`to_json` gave; raises KeyError, TypeError or ValueError if it is nothing of the kind."""
        return cls(
            name=content["name"],
            inputs=tuple(_tuples(TensorSpec, entry) for entry in content["inputs"]),
            tasks=tuple(_tuples(TaskSpec, {**entry, "kind": Kind(entry["kind"])}) for entry in content["tasks"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One network of a family, as the store knows it.

    Attributes:
        id: First 16 hex digits of the SHA-256 of its program, weights and tasks: the model version that clients see.
        name: For people, unique in the family: ``all-p30``, ``shoe-p30``, ``single-shoe-p30``.
        family: Name of its family.
        tasks: Those it answers, in the family's order.
        source: How it came about.
        parent: Id of the variant it was pruned from or specialised from, None if that is not in the store.
        ratio: The pruning ratio that was asked for, in [0, 1).
        achieved: Share that is gone of ``"channels"``, ``"parameters"`` and ``"flops"`` of the unpruned network of the same
            tasks; empty where that is not known.
        num_parameters: Of this network.
        flops: For one sample, two for each multiply-add.
        num_bytes: Of its weights and buffers.
        weights_sha256: Of ``model.safetensors``.
        provenance: JSON: seeds, epochs, criterion, loss weights, versions and whatever else tells how it was made.
    """

    id: str
    name: str
    family: str
    tasks: tuple[str, ...]
    source: Source
    parent: str | None
    ratio: float
    achieved: Mapping[str, float]
    num_parameters: int
    flops: int
    num_bytes: int
    weights_sha256: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {name: getattr(self, name) for name in self.__slots__} | {"tasks": list(self.tasks), "source": str(self.source)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return what :meth:`to_json` gave; raises KeyError, TypeError or ValueError if it is nothing of the kind."""
        values: dict[str, Any] = {**content, "tasks": tuple(content["tasks"]), "source": Source(content["source"])}
        found = cls(**values)
        for name in (found.id, found.family, found.name):  # they become paths
            check_name(name, "a variant's id, family and name")
        if not (
            0 <= found.ratio < 1 and all(0 <= size < _LARGEST for size in (found.num_bytes, found.num_parameters, found.flops))
        ):
            raise ValueError("expected a ratio in [0, 1), and sizes from 0")
        return found


def check_name(name: str, what: str) -> None:
    """Refuse what cannot be a name in files, addresses and labels."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or "+" in name:
        raise ServingError(
            f"expected for {what} 1 to 100 letters, digits, '_', '-' and '.', the first a letter or a digit; got {name!r}"
        )


def _tuples(kind: type, entry: Mapping[str, Any]) -> Any:
    found = kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()})
    if not isinstance(found.shape, tuple) or not all(type(size) is int and 0 <= size < _LARGEST for size in found.shape):
        raise ValueError(f"{found.name}: expected a shape of sizes from 0, got {found.shape!r}")
    return found
