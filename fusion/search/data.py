"""Representative inputs in three disjoint parts: to train on, to decide by, to report on once (paper sections 3 and 6.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fusion.graph.errors import FusionError
from fusion.search.hashing import hash_tensors

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]

NO_LABEL = -100
"""Integer label that says: this sample is not labelled for this task. Float labels say it with NaN."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Samples, held as whole tensors; an augmented sample is augmented once, before it comes here.

    So teacher and student always see the same tensor.

    Args:
        inputs: What the models take: a tensor `(samples, …)`, a tuple of them, or tensors by keyword.
        labels: Per task name `(samples, …)`. `-100` or NaN: no label for that task here. A task may be missing: labels are
            needed for scores only, never for training.
    """

    inputs: Inputs
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    content: str = field(init=False)  # hash of all tensors

    def __post_init__(self) -> None:
        named = self.named_inputs()
        if not named:
            raise FusionError("a part of the data needs at least one input tensor, got none")
        lengths = {name: len(tensor) for name, tensor in [*named, *self.labels.items()]}
        if len(set(lengths.values())) > 1 or 0 in lengths.values():
            raise FusionError(f"inputs and labels need one row per sample, at least one; got rows {lengths}")
        labels = [(f"label {name}", self.labels[name]) for name in sorted(self.labels)]
        object.__setattr__(self, "content", hash_tensors([*named, *labels]))

    def __len__(self) -> int:
        return len(self.named_inputs()[0][1])

    def named_inputs(self) -> list[tuple[str, Tensor]]:
        """List the input tensors with their keyword, or their position as text."""
        if isinstance(self.inputs, Tensor):
            return [("0", self.inputs)]
        if isinstance(self.inputs, Mapping):
            return sorted(self.inputs.items())
        return [(str(position), tensor) for position, tensor in enumerate(self.inputs)]

    def select(self, index: Tensor) -> Part:
        """Copy the samples at `index` `(chosen,)`, int64."""
        inputs = self.inputs
        if isinstance(inputs, Tensor):
            chosen: Inputs = inputs[index]
        elif isinstance(inputs, Mapping):
            chosen = {name: tensor[index] for name, tensor in inputs.items()}
        else:
            chosen = tuple(tensor[index] for tensor in inputs)
        return Part(inputs=chosen, labels={name: labels[index] for name, labels in self.labels.items()})


class SealedPart:
    """A part that is to be opened once, by the final report; it counts.

    Args:
        part: The samples.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        self.times_opened = 0

    def __len__(self) -> int:
        return len(self._part)

    @property
    def content(self) -> str:
        """Hash of all tensors; reading it opens nothing."""
        return self._part.content

    def open(self) -> Part:
        """Hand out the samples, and count it."""
        self.times_opened += 1
        return self._part


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FusionData:
    """Samples to train on, samples that decide which model is accepted, and samples for the final report.

    Args:
        train: Inputs of the distillation.
        validation: Early stops, acceptance and the front look at these.
        test: Only the final report looks at these, once. None: the report says that nothing was held out.

    Example:
        >>> data = FusionData.split(torch.randn(10, 3), {"age": torch.arange(10)}, validation=2, test=0.2, seed=0)
        >>> len(data.train), len(data.validation), len(data.test)
        (6, 2, 2)
    """

    train: Part
    validation: Part
    test: SealedPart | None = None

    @classmethod
    def split(
        cls,
        inputs: Inputs,
        labels: Mapping[str, Tensor] | None = None,
        *,
        validation: float = 0.2,
        test: float = 0.2,
        seed: int = 0,
    ) -> FusionData:
        """Deal samples at random into disjoint parts.

        Samples with equal inputs go into one part together (the training part, if one of them was dealt there): what a part
        holds back must not be in another.

        Args:
            inputs: As in `Part`.
            labels: As in `Part`. None: no labels at all.
            validation: Share in (0, 1), or number of samples (>= 1).
            test: The same; 0: no test part.
            seed: Of the order in which samples are dealt.

        Raises:
            FusionError: A part would be empty.
        """
        whole = Part(inputs=inputs, labels=labels or {})
        sizes = [0, _count(validation, len(whole)), _count(test, len(whole))]
        sizes[0] = max(0, len(whole) - sum(sizes))
        parts = _deal(whole, sizes, seed)
        if any(len(index) == 0 for index in parts[: 3 if test else 2]):
            counts = "{} to train, {} to validate and {} to test".format(*(len(index) for index in parts))
            raise FusionError(f"{len(whole)} samples leave {counts}; each needs one at least: pass more, or other shares")
        train, held, reported = (whole.select(index) if len(index) else None for index in parts)
        assert train is not None
        assert held is not None
        return cls(train=train, validation=held, test=SealedPart(reported) if reported else None)

    @property
    def content(self) -> str:
        """Hash of all parts: data of the same content, the same text."""
        return "-".join(part.content if part else "none" for part in (self.train, self.validation, self.test))


def join(parts: Sequence[Part]) -> Part:
    """Put samples of several data sets into one part; where a set has no labels for a task, there is no label.

    Args:
        parts: All with the same input names, shapes and dtypes per sample.

    Example:
        >>> ages = Part(inputs=torch.zeros(2, 3), labels={"age": torch.tensor([5, 6])})
        >>> faces = Part(inputs=torch.ones(1, 3), labels={"face": torch.tensor([0.5])})
        >>> both = join([ages, faces])
        >>> both.labels["age"].tolist(), both.labels["face"].tolist()
        ([5, 6, -100], [nan, nan, 0.5])
    """
    first = parts[0]
    names = [name for name, _ in first.named_inputs()]
    for part in parts:
        if [name for name, _ in part.named_inputs()] != names:
            raise FusionError(
                f"data sets to be joined take inputs {names} and {[n for n, _ in part.named_inputs()]}; make them alike"
            )
    columns = {name: torch.cat([dict(part.named_inputs())[name] for part in parts]) for name in names}
    if isinstance(first.inputs, Tensor):
        inputs: Inputs = columns["0"]
    else:
        inputs = columns if isinstance(first.inputs, Mapping) else tuple(columns[name] for name in names)
    tasks = sorted({name for part in parts for name in part.labels})
    return Part(inputs=inputs, labels={task: _joined_labels(parts, task) for task in tasks})


def check_data(data: FusionData, tasks: Sequence[str]) -> None:
    """Refuse labels for tasks that there are not, and parts that are alike or take other inputs.

    Args:
        data: The parts.
        tasks: Names of the tasks.

    Raises:
        FusionError: With all that is wrong.
    """
    parts = {"train": data.train, "validation": data.validation}
    wanted = _form(data.train)
    problems = [
        f"the {name} part has labels for '{task}', the tasks are {', '.join(tasks)}"
        for name, part in parts.items()
        for task in sorted(part.labels.keys() - set(tasks))
    ]
    if _form(data.validation) != wanted:
        problems.append(f"the validation part takes inputs {_form(data.validation)}, the training part {wanted}")
    contents = [data.train.content, data.validation.content, data.test.content if data.test else "none"]
    if len(set(contents)) < 3:
        problems.append("two parts are the same samples; what is learnt from must not judge: use FusionData.split")
    if problems:
        raise FusionError(f"the data of the search: {'; '.join(problems)}")


def labelled(labels: Tensor) -> Tensor:
    """Say which labels are there: bool, of the shape of `labels`."""
    return ~labels.isnan() if labels.is_floating_point() else labels != NO_LABEL


def _form(part: Part) -> dict[str, str]:
    return {name: f"{tuple(tensor.shape[1:])} {tensor.dtype}".replace("torch.", "") for name, tensor in part.named_inputs()}


def _joined_labels(parts: Sequence[Part], task: str) -> Tensor:
    example = next(part.labels[task] for part in parts if task in part.labels)
    missing = float("nan") if example.is_floating_point() else NO_LABEL
    columns = [part.labels.get(task, example.new_full((len(part), *example.shape[1:]), missing)) for part in parts]
    return torch.cat(columns)


def _deal(whole: Part, sizes: Sequence[int], seed: int) -> list[Tensor]:
    """Return the samples of each part, in the order in which they were dealt."""
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
    part_of = torch.cat([torch.full((size,), part) for part, size in enumerate(sizes)])[: len(whole)]
    first: dict[bytes, int] = {}
    for position, row in enumerate(order.tolist()):
        part_of[position] = first.setdefault(_row_key(whole, row), int(part_of[position]))
    return [order[part_of == part] for part in range(len(sizes))]


def _row_key(part: Part, row: int) -> bytes:
    rows = [tensor[row].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for _, tensor in part.named_inputs()]
    return hashlib.blake2b(b"|".join(rows), digest_size=16).digest()


def _count(share: float, num_samples: int) -> int:
    if share < 0:
        raise FusionError(f"the share of a part is {share}, expected a share in (0, 1) or a number of samples")
    return int(share) if share >= 1 else round(share * num_samples)
