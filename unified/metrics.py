"""What is measured on the test set after each epoch, batch by batch, on whatever device the batches are.

A metric keeps counts or sums, so its value does not depend on how the samples were cut into batches, and
it computes on the device of what it is given. The module is free of torch: it only calls tensors' methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100  #: the target of a position that does not count, as in ``torch.nn.CrossEntropyLoss``


class Metric(Protocol):
    """A number in the making: fed batch by batch, read at the end of an evaluation."""

    name: str

    def update(self, output: Tensor, target: Tensor) -> None:
        """Take in one batch.

        Args:
            output: What the model gave: ``(batch, classes, *positions)``, or single logits or values,
                ``(batch,)`` or ``(batch, 1, *positions)``.
            target: Class indices ``(batch, *positions)``, where -100 is not counted, or values shaped as
                ``output``.

        Raises:
            ValueError: If the shapes do not belong together.
        """
        ...

    def compute(self) -> float:
        """Return the value over all batches since the last ``reset``; NaN if nothing was counted."""
        ...

    def reset(self) -> None:
        """Forget all batches."""
        ...


class HitRate:
    """The share of targets that are hit. ``hits`` tells of a batch what is a hit and what counts at all."""

    def __init__(self, name: str, hits: Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self.name = name
        self._hits = hits
        self.reset()

    def update(self, output: Tensor, target: Tensor) -> None:
        """Take in one batch, see :class:`Metric`."""
        hit, counted = self._hits(self.name, output, target)
        self._num_hits += (hit & counted).sum()
        self._num_counted += counted.sum()

    def compute(self) -> float:
        """Return the share, from 0 to 1."""
        return _ratio(int(self._num_hits), int(self._num_counted))

    def reset(self) -> None:
        """Forget all batches."""
        self._num_hits: Any = 0
        self._num_counted: Any = 0


def _right_decisions(name: str, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    decided, target = _decisions(name, output, target)
    return decided == target, target != IGNORED


def _among_five_largest(name: str, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    target = _class_indices(name, output, target)
    own = output.gather(1, target.clamp(min=0).unsqueeze(1))
    # Ties count in the target's favour. Asked this way round, a NaN ranks above the target's output.
    num_above = (output <= own).logical_not().sum(dim=1)
    return num_above < 5, target != IGNORED


ClassCount = tuple[int, int, int]  #: of one class: how often it was decided on and right, decided on, right


class ClassScore:
    """A score of decisions that depends only on :data:`ClassCount`, which are exact integers."""

    def __init__(self, name: str, score: Callable[[list[ClassCount]], float]) -> None:
        self.name = name
        self._score = score
        self.reset()

    def update(self, output: Tensor, target: Tensor) -> None:
        """Take in one batch, see :class:`Metric`."""
        num_classes = max(2, output.shape[1] if output.ndim > 1 else 2)
        decided, target = _decisions(self.name, output, target)
        counted = target != IGNORED
        decided, target = decided[counted], target[counted]
        both = target[decided == target]
        batch = [values.bincount(minlength=num_classes) for values in (both, decided, target)]
        self._counts = [old + new for old, new in zip(self._counts, batch, strict=True)]

    def compute(self) -> float:
        """Return the score."""
        if isinstance(self._counts[0], int):
            return math.nan
        return self._score(list(zip(*(count.tolist() for count in self._counts), strict=True)))

    def reset(self) -> None:
        """Forget all batches."""
        self._counts: list[Any] = [0, 0, 0]


def _f1_macro(counts: list[ClassCount]) -> float:
    """Return the mean F1 over the classes that occur, as decision or as target."""
    scores = [2 * both / (decided + right) for both, decided, right in counts if decided + right]
    return _ratio(math.fsum(scores), len(scores))


def _matthews_correlation(counts: list[ClassCount]) -> float:
    """Return the correlation of decision and target; 0 if either is always one class.

    Reference: J. Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient",
    2004.
    """
    total = sum(right for _, _, right in counts)
    if not total:
        return math.nan
    covariance = total * sum(both for both, _, _ in counts) - sum(d * r for _, d, r in counts)
    spread_decided = total**2 - sum(d * d for _, d, _ in counts)
    spread_right = total**2 - sum(r * r for _, _, r in counts)
    if not spread_decided or not spread_right:
        return 0.0
    return covariance / (math.sqrt(spread_decided) * math.sqrt(spread_right))


class MeanError:
    """The mean over all values of ``error(output - target)``, in float64."""

    def __init__(self, name: str, error: Callable[[Tensor], Tensor]) -> None:
        self.name = name
        self._error = error
        self.reset()

    def update(self, output: Tensor, target: Tensor) -> None:
        """Take in one batch, see :class:`Metric`."""
        output, target = _same_shape(self.name, output, target)
        self._sum += self._error(output.double() - target.double()).sum()
        self._num_values += target.numel()

    def compute(self) -> float:
        """Return the mean, in the unit of the targets for ``mae`` and in its square for ``mse``."""
        return _ratio(float(self._sum), self._num_values)

    def reset(self) -> None:
        """Forget all batches."""
        self._sum: Any = 0.0
        self._num_values = 0


def _square(difference: Tensor) -> Tensor:
    return difference.square()


class R2:
    """The share of the targets' variance that the outputs explain, averaged over the values of a sample.

    The variance of each value is merged from batch to batch, which loses no digits to a large mean.

    Reference: T. Chan, G. Golub, R. LeVeque, "Algorithms for computing the sample variance", 1983.
    """

    name = "r2"

    def __init__(self) -> None:
        self.reset()

    def update(self, output: Tensor, target: Tensor) -> None:
        """Take in one batch, see :class:`Metric`."""
        output, target = _same_shape(self.name, output, target)
        num_new = target.shape[0]
        if not num_new:
            return
        output, target = (values.double().reshape(num_new, -1) for values in (output, target))
        mean = target.mean(dim=0)
        shift, total = mean - self._mean, self._num_samples + num_new
        self._variation += (target - mean).square().sum(dim=0) + shift.square() * (self._num_samples * num_new / total)
        self._mean = self._mean + shift * (num_new / total)
        self._residual += (output - target).square().sum(dim=0)
        self._num_samples = total

    def compute(self) -> float:
        """Return the coefficient of determination, at most 1; NaN below two samples."""
        if self._num_samples < 2:
            return math.nan
        pairs = zip(self._residual.tolist(), self._variation.tolist(), strict=True)
        scores = [1 - left / whole if whole else float(not left) for left, whole in pairs]
        return _ratio(math.fsum(scores), len(scores))

    def reset(self) -> None:
        """Forget all batches."""
        self._num_samples = 0
        self._mean: Any = 0.0
        self._variation: Any = 0.0
        self._residual: Any = 0.0


class Perplexity:
    """The exponential of the mean cross-entropy (in nats) of logits over classes."""

    name = "perplexity"

    def __init__(self) -> None:
        self.reset()

    def update(self, output: Tensor, target: Tensor) -> None:
        """Take in one batch, see :class:`Metric`."""
        target = _class_indices(self.name, output, target)
        counted = target != IGNORED
        output = output if output.element_size() > 2 else output.float()  # half precision sums too coarsely
        log_likelihood = output.log_softmax(dim=1).gather(1, target.clamp(min=0).unsqueeze(1)).squeeze(1)
        # Selected, not multiplied by the mask: an ignored position may be NaN or infinite.
        self._sum -= log_likelihood[counted].double().sum()
        self._num_counted += counted.sum()

    def compute(self) -> float:
        """Return the perplexity, 1 or more."""
        mean = _ratio(float(self._sum), int(self._num_counted))
        return math.exp(mean) if not mean > 700 else math.inf

    def reset(self) -> None:
        """Forget all batches."""
        self._sum: Any = 0.0
        self._num_counted: Any = 0


_METRICS: dict[str, Callable[[], Metric]] = {
    "accuracy": partial(HitRate, "accuracy", _right_decisions),
    "top5_accuracy": partial(HitRate, "top5_accuracy", _among_five_largest),
    "f1_macro": partial(ClassScore, "f1_macro", _f1_macro),
    "matthews_correlation": partial(ClassScore, "matthews_correlation", _matthews_correlation),
    "mae": partial(MeanError, "mae", abs),
    "mse": partial(MeanError, "mse", _square),
    "r2": R2,
    "perplexity": Perplexity,
}

METRIC_NAMES: tuple[str, ...] = tuple(_METRICS)
LOSS_NAMES: tuple[str, ...] = ("train_loss", "test_loss")  #: measured for every job, without being asked for
_LOWER_IS_BETTER = frozenset({"mae", "mse", "perplexity", *LOSS_NAMES})

#: For each number that training can be stopped by: whether more of it is better.
HIGHER_IS_BETTER: dict[str, bool] = {name: name not in _LOWER_IS_BETTER for name in (*METRIC_NAMES, *LOSS_NAMES)}


def build_metrics(names: Iterable[str]) -> list[Metric]:
    """Return a new metric for each name, in order.

    Raises:
        KeyError: If a name is not one of :data:`METRIC_NAMES`.

    Example:
        >>> import torch
        >>> (accuracy,) = build_metrics(["accuracy"])
        >>> accuracy.update(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        >>> accuracy.compute()
        0.5
    """
    return [_METRICS[name]() for name in names]


def _ratio(part: float, whole: int) -> float:
    return part / whole if whole else math.nan


def _decisions(name: str, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class decided on and the right one, both int64 of shape ``(batch, *positions)``."""
    if output.ndim > 1 and output.shape[1] > 1:
        return output.argmax(dim=1), _class_indices(name, output, target)
    output, target = _same_shape(name, output, target)
    return (output > 0).long(), target.long()


def _class_indices(name: str, output: Tensor, target: Tensor) -> Tensor:
    """Return ``target`` if it holds indices of the classes of ``output``: ``(batch, *positions)``."""
    fits = output.ndim > 1 and target.shape == (output.shape[0], *output.shape[2:])
    if not fits or target.is_floating_point():
        raise ValueError(
            f"metric {name!r}: expected outputs of shape (batch, classes, *positions) and class indices "
            f"of shape (batch, *positions), got {_kind(output)} and {_kind(target)}; "
            f"leave {name!r} out of metrics, or hand in targets that are class indices"
        )
    return target.long()


def _same_shape(name: str, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in one shape, a dimension of size one after the batch dropped; never broadcast."""
    output, target = (part.squeeze(1) if part.ndim > 1 and part.shape[1] == 1 else part for part in (output, target))
    if output.shape != target.shape:
        raise ValueError(
            f"metric {name!r}: expected one target per output value, got {_kind(output)} "
            f"and {_kind(target)}; give both the same shape"
        )
    return output, target


def _kind(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}"
