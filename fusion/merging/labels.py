"""Labels of tasks as class numbers, ``(samples, attributes)``: what the information in neurons is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fusion.merging.config import LabelMode
from fusion.merging.errors import MergeError

MIN_JOINT_CLASS = 8  #: below, joint labels make chance look like information


def attributes(labels: Tensor, *, bins: int) -> Tensor:
    """Return a task's labels as class numbers.

    Args:
        labels: Classes ``(samples,)`` of any integer type; attributes ``(samples, attributes)``, integers or only 0.0 and 1.0;
            or real values ``(samples,)`` or ``(samples, values)``, which are put into quantile bins.
        bins: Number of bins of each real value.

    Returns:
        ``(samples, attributes)``, int64. Real values that are often equal may fill fewer bins.

    Raises:
        MergeError: Labels of another shape, complex, or not finite.
    """
    if labels.ndim not in (1, 2) or labels.is_complex() or not labels.numel():
        raise MergeError(
            f"labels are classes (samples,), attributes (samples, attributes) or real values of either shape; "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    columns = labels.reshape(len(labels), -1)
    if not columns.is_floating_point():
        return columns.long()
    if not columns.isfinite().all():
        raise MergeError(f"labels have {int((~columns.isfinite()).sum())} values that are not finite: leave those samples out")
    if ((columns == 0) | (columns == 1)).all():
        return columns.long()
    cuts = torch.arange(1, bins, device=columns.device, dtype=columns.dtype) / bins
    edges = columns.quantile(cuts, dim=0)
    return torch.stack([torch.bucketize(x.contiguous(), e) for x, e in zip(columns.T, edges.T, strict=True)], dim=1)


def side_by_side(labels: Sequence[Tensor], *, bins: int) -> Tensor:
    """Return several tasks' labels as one task's: their attributes beside each other, as ``attributes`` gives them."""
    lengths = {len(task) for task in labels}
    if len(lengths) != 1:
        raise MergeError(f"the tasks' labels are for the same samples, but there are {sorted(lengths)} of them")
    return torch.cat([attributes(task, bins=bins) for task in labels], dim=1)


def usable(codes: Tensor, mode: LabelMode) -> Tensor:
    """Return the attributes that can be informed about: without constant ones, and as one in joint mode.

    Raises:
        MergeError: All attributes are constant.
    """
    varying = (codes != codes[:1]).any(dim=0)
    if not varying.any():
        raise MergeError("labels are constant on the probe samples: there is nothing to be informed about (entropy 0)")
    codes = codes[:, varying]
    if mode == "joint":
        return codes.unique(dim=0, return_inverse=True)[1][:, None]
    return torch.stack([column.unique(return_inverse=True)[1] for column in codes.T], dim=1)


def check_class_sizes(codes: Tensor, mode: LabelMode) -> None:
    """Refuse labels whose classes have too few samples within a draw, ``(draws, samples, attributes)``.

    Raises:
        MergeError: In joint mode the median class has less than 8 samples; otherwise an attribute has more classes than
            half of the samples, as identifiers and real values given as integers have.
    """
    for draw in codes:
        for number, column in enumerate(draw.T):
            sizes = column.unique(return_counts=True)[1]
            if mode == "joint" and (median := float(sizes.float().median())) < MIN_JOINT_CLASS:
                raise MergeError(
                    f"joint labels have {len(sizes)} classes in a draw of {len(column)}, the median one with {median:g} "
                    f"samples; expected at least {MIN_JOINT_CLASS}: raise num_samples or use label_mode='mean_marginal'"
                )
            if 2 * len(sizes) > len(column):
                raise MergeError(
                    f"attribute {number} has {len(sizes)} classes in a draw of {len(column)} samples: raise num_samples, "
                    f"or give real values as floats, so that they are put into bins"
                )


def shuffled(codes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` permutations of ``(draws, samples, attributes)``, each within its draw and of whole rows.

    Returns:
        ``(draws, samples, count * attributes)``.
    """
    draws, samples, _ = codes.shape
    copies = [
        torch.stack([codes[draw, torch.randperm(samples, generator=generator).to(codes.device)] for draw in range(draws)])
        for _ in range(count)
    ]
    return torch.cat(copies, dim=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """Labels of draws, ready for sums over classes; the classes of all attributes are numbered through.

    Attributes:
        members: ``(draws, samples, classes)``, 1 where a sample is of a class.
        own: ``(draws, samples, attributes)``, the number of each sample's class.
        sizes: ``(draws, classes)``, samples of a class.
    """

    members: Tensor
    own: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, codes: Tensor) -> Self:
        """Number the classes of ``(draws, samples, attributes)``."""
        widths = codes.amax(dim=(0, 1)) + 1
        own = codes + (widths.cumsum(0) - widths)
        members = torch.zeros(*codes.shape[:2], int(widths.sum()), device=codes.device).scatter_(2, own, 1.0)
        return cls(members=members, own=own, sizes=members.sum(dim=1))

    @property
    def entropies(self) -> Tensor:
        """Return each attribute's entropy in nats, ``(attributes,)``, mean over the draws."""
        share = (self.sizes / self.own.shape[1])[:, None].expand_as(self.members).gather(2, self.own)
        return -share.log().mean(dim=(0, 1))
