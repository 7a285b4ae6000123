"""What a kind of optimizer is to a stack: the state it holds, and a step of it in two ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

Reals: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]
Numbers: TypeAlias = tuple[float, ...]  # a member's hyper-parameters, in the order of its rule
Group: TypeAlias = Mapping[str, object]  # of an optimizer's `param_groups`
Coefficients: TypeAlias = Mapping[str, list[Tensor]]  # by name, then by parameter: `(members, 1, ...)`

BUFFER = "momentum_buffer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What one pass works on, all lists in the order of the same parameters.

    Args:
        values: `(members, ...)` each, changed in place.
        grads: Of the same shapes, left as they are.
        state: By the key that `torch.optim` gives it; of the same shapes, changed in place.
        is_first: Whether the momentum buffers hold nothing yet.
    """

    values: list[Tensor]
    grads: list[Tensor]
    state: Mapping[str, list[Tensor]]
    is_first: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What vector arithmetic costs for a step of one kind, in microseconds, beyond what the fused kernel costs in one call.

    Args:
        start: However many parameters there are.
        parameter: For each parameter, however large.
        element: For each element of it, since more passes are made over it.
    """

    start: float
    parameter: float
    element: float


class Rule(Protocol):
    """A kind of optimizer with its boolean flags.

    Attributes:
        keys: Of the state, in the order in which `torch.optim` holds it.
        counts_steps: Whether the state holds a step count.
        costs: Of vector arithmetic; None where there is no fused kernel.
    """

    @property
    def keys(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def counts_steps(self) -> bool: ...  # noqa: D102
    @property
    def costs(self) -> Costs | None: ...  # noqa: D102

    def read(self, group: Group) -> Numbers:
        """Read a member's hyper-parameters."""
        ...

    def buffering(self, numbers: Reals) -> Flags:
        """Say which members, of `(members, numbers)`, keep a momentum buffer."""
        ...

    def coefficients(self, numbers: Reals, steps: Reals) -> dict[str, Reals]:
        """Give what `vector` multiplies with, `(members,)` each; what would change no member is left out.

        Args:
            numbers: `(members, numbers)`; either all of them keep a momentum buffer or none.
            steps: `(members,)`, with the coming step counted.
        """
        ...

    def vector(self, tensors: Pass, by: Coefficients) -> None:
        """Step members of different hyper-parameters."""
        ...

    def fused(self, tensors: Pass, numbers: Numbers, step: Tensor) -> None:
        """Step members of equal hyper-parameters; `step` counts the coming step."""
        ...
