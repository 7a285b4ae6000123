"""Datasets as tensors: mapped from their files, gathered into batches, shared by whoever names them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from unified.admission import DatasetRef
from unified.dataset_problems import Inputs, blamed_on, data_problem, named_tensors, reason, refusal
from unified.errors import Problem
from unified.tensor_files import map_tensors

#: The losses that take a class index as target.
INDEX_LOSSES = ("CrossEntropyLoss", "NLLLoss")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorData:
    """A dataset as tensors.

    Attributes:
        inputs: ``(samples, …)``, or such a tensor under the name of each of the model's inputs.
        targets: ``(samples, …)``.
    """

    inputs: Inputs
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(t.numel() * t.element_size() for t in named_tensors(self.inputs, self.targets).values())

    def batch(self, index: torch.Tensor, *, device: torch.device | str | None = None) -> tuple[Inputs, torch.Tensor]:
        """Gather the samples at ``index`` as ``default_collate`` would: same values, dtypes and shapes.

        Args:
            index: int64 ``(batch,)``, each in ``[0, samples)``.
            device: Where the batch is wanted; by default where the dataset is.

        Returns:
            ``(inputs, targets)`` with first axis ``batch``, never sharing storage with the dataset. On a GPU
            the copy may still be under way; work queued on the current stream comes after it.
        """
        index = index.to(self.targets.device)
        return self._each(lambda tensor: _gather(tensor, index, device))

    def batches(self, batch_size: int, *, device: torch.device | str | None = None) -> Iterator[tuple[Inputs, torch.Tensor]]:
        """Yield all samples in order, ``batch_size`` at a time, the last batch possibly smaller; copies."""
        for start in range(0, len(self), batch_size):
            yield self._each(lambda tensor, s=start: _copy(tensor[s : s + batch_size], device))

    def to(self, device: torch.device | str) -> TensorData:
        """Return the dataset on ``device``; shares storage if it is there already."""
        inputs, targets = self._each(lambda tensor: tensor.to(device))
        return TensorData(inputs=inputs, targets=targets)

    def _each(self, function: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Inputs, torch.Tensor]:
        if isinstance(self.inputs, dict):
            return {name: function(tensor) for name, tensor in self.inputs.items()}, function(self.targets)
        return function(self.inputs), function(self.targets)


def load_tensors(ref: DatasetRef) -> TensorData:
    """Map the dataset that ``ref`` stands for; its bytes are read when they are first touched.

    Raises:
        InvalidSubmission: The file is gone, or no longer what it was when the reference was made.
    """
    with blamed_on(ref.source, str(ref.path)):
        expected = f"the file as it was read before: {ref.num_samples} samples, {ref.nbytes} bytes"
        remedy = "leave data as it is while its jobs wait and run; submit the job again"
        try:
            inputs, targets = map_tensors(ref.path)
        except OSError as error:
            raise refusal(expected, reason(error), remedy) from None
        data = TensorData(inputs=inputs, targets=targets)
        if (len(data), data.nbytes) != (ref.num_samples, ref.nbytes):
            raise refusal(expected, f"{len(data)} samples, {data.nbytes} bytes", remedy)
    return data


class DatasetPool:
    """The datasets that this process holds: one of each content, dropped when its last user releases it.

    Args:
        device: Where batches will be wanted.
        budget_bytes: How much of ``device`` may be taken by whole datasets. What does not fit stays mapped on
            the host and is copied batch by batch; on the CPU everything stays mapped.
    """

    def __init__(self, *, device: torch.device | str = "cpu", budget_bytes: int = 0) -> None:
        self._device = torch.device(device)
        self._budget_bytes = budget_bytes
        self._data: dict[str, TensorData] = {}
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._data)

    def get(self, ref: DatasetRef) -> TensorData:
        """Return the dataset of ``ref``, one object for equal keys; to be given back with :meth:`release`.

        Raises:
            InvalidSubmission: See :func:`load_tensors`.
        """
        with self._lock:
            if ref.key not in self._data:
                self._data[ref.key] = self._place(load_tensors(ref))
            self._counts[ref.key] = self._counts.get(ref.key, 0) + 1
            return self._data[ref.key]

    def release(self, key: str) -> None:
        """Give back what one :meth:`get` of ``key`` returned. Raises KeyError if nothing is held under it."""
        with self._lock:
            self._counts[key] -= 1
            if self._counts[key] == 0:
                del self._counts[key], self._data[key]

    @property
    def device_bytes(self) -> int:
        """Bytes of ``device`` taken by whole datasets; 0 on the CPU."""
        if self._device.type == "cpu":
            return 0
        return sum(data.nbytes for data in self._data.values() if data.targets.device.type == self._device.type)

    def _place(self, data: TensorData) -> TensorData:
        fits = self.device_bytes + data.nbytes <= self._budget_bytes
        return data.to(self._device) if self._device.type != "cpu" and fits else data


def label_problems(
    data: TensorData, num_classes: int | None, loss_name: str, *, job: str, field: str, ignore_index: int = -100
) -> list[Problem]:
    """Return what is wrong with class labels: on a GPU one label out of range would end everyone's job.

    Args:
        data: The dataset, its targets read whole.
        num_classes: Number of classes the model tells apart, or None if unknown.
        loss_name: PyTorch's class name; other losses than :data:`INDEX_LOSSES` have no labels.
        job: Whose it is.
        field: Which dataset it is, e.g. ``"data.train"``.
        ignore_index: The loss's own argument: such labels are left out by it.
    """
    targets = data.targets
    probabilities = loss_name == "CrossEntropyLoss" and targets.is_floating_point() and targets.dim() > 1
    if loss_name not in INDEX_LOSSES or probabilities:
        return []

    def problem(given: str, remedy: str) -> list[Problem]:
        bound = "" if num_classes is None else f" below {num_classes}"
        expected = f"int64 class labels from 0{bound} for {loss_name}"
        found = data_problem(expected, given, remedy, field=f"{field}: targets", code="E-LABEL")
        return [replace(found, job=job)]

    if targets.dtype not in (torch.int64, torch.uint8):
        return problem(f"dtype {targets.dtype}", "save the targets with .to(torch.int64)")
    labels = targets[targets != ignore_index]
    wrong = labels < 0 if num_classes is None else (labels < 0) | (labels >= num_classes)
    values = labels[wrong].unique()[:5].tolist()
    remedy = "number the classes from 0, and give the model an output for each"
    return problem(f"labels such as {values}", remedy) if values else []


def _gather(tensor: torch.Tensor, index: torch.Tensor, device: torch.device | str | None) -> torch.Tensor:
    target = tensor.device if device is None else torch.device(device)
    if tensor.device.type != "cpu" or target.type != "cuda":
        return tensor.index_select(0, index).to(target)
    # Pinned, so that the copy runs beside the computation; the allocator keeps the block until it is done.
    shape = (len(index), *tensor.shape[1:])
    rows = torch.empty(shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    torch.index_select(tensor, 0, index, out=rows)
    return rows.to(target, non_blocking=True)


def _copy(rows: torch.Tensor, device: torch.device | str | None) -> torch.Tensor:
    copied = rows.clone(memory_format=torch.contiguous_format)
    return copied if device is None else copied.to(device)
