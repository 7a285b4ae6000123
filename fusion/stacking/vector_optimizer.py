"""One optimizer for all members of a stack, each with its own hyper-parameters, step count and clipping.

It makes the steps that each member's ordinary `torch.optim` optimizer would make alone. That one stays: its hyper-parameters
are read at every step, so that any learning rate schedule works on it, and it takes the state over when the member goes on
alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from fusion.stacking.gradient_clip import clip_rows_
from fusion.stacking.optimizer_kinds import refusal
from fusion.stacking.optimizer_rule import Numbers
from fusion.stacking.optimizer_state import StackedState
from fusion.stacking.stacked_parameter import StackedParameter
from fusion.stacking.step_lanes import Cohort, Lane, Path, lanes
from fusion.stacking.vector_rules import RULES

__all__ = ["VectorOptimizer", "refusal"]


class VectorOptimizer:
    """Step all members of a stack at once.

    Args:
        parameters: Of the stack. Their tensors may be replaced before `select` and `join` only.
        optimizers: Each member's own, with one group whose parameters are in the order of `parameters`. Their states are
            taken over, and are out of date until `write_back`.
        path: ``"fastest"`` chooses for each parameter (`step_lanes`); ``"vector"`` takes vector arithmetic for all, and
            ``"fused"`` fused kernels wherever there are any.

    Raises:
        ValueError: The optimizers cannot be one (see `refusal`), or do not hold what `parameters` hold.
    """

    def __init__(
        self, parameters: Sequence[StackedParameter], optimizers: Sequence[torch.optim.Optimizer], *, path: Path = "fastest"
    ) -> None:
        self._parameters = list(parameters)
        self._optimizers: list[torch.optim.Optimizer] = []
        self._path: Path = path
        self._check(optimizers)
        self._rule = RULES[type(optimizers[0])](optimizers[0].param_groups[0])
        self._state = StackedState(self._rule, self._parameters)
        self._numbers: list[Numbers] = []
        self._active: list[int] = []  # parameters with a gradient
        self._stepped: slice | npt.NDArray[np.intp] = slice(0)  # the same, faster to index with
        self._lanes: list[Lane] | None = None
        self._begins_buffers = False  # the coming step makes momentum buffers
        self._add(optimizers)

    @torch.no_grad()
    def step(self) -> None:
        """Step all members by their gradients; a parameter without one stays as it is."""
        active = [index for index, parameter in enumerate(self._parameters) if parameter.tensor.grad is not None]
        for optimizer in self._optimizers:
            optimizer._opt_called = True  # pyrefly: ignore[missing-attribute]  # else a schedule warns that no step was made
        if not active or not self._optimizers:
            return
        if active != self._active:
            self._active, self._lanes = active, None
            self._stepped = slice(None) if len(active) == len(self._parameters) else np.array(active)
        self._read_numbers()
        if self._lanes is None:
            self._lanes = self._plan()
        for lane in self._lanes:
            lane.step(self._numbers)
        self._count()

    def clip_(self, max_norms: Sequence[float | None]) -> None:
        """Clip each member's gradients by their total norm, as `torch.nn.utils.clip_grad_norm_` does for it alone.

        Args:
            max_norms: One a member; one with None stays as it is.
        """
        if len(max_norms) != len(self._optimizers):
            raise ValueError(f"expected {len(self._optimizers)} norms, one a member, got {len(max_norms)}")
        clip_rows_([grad for parameter in self._parameters if (grad := parameter.tensor.grad) is not None], max_norms)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self._parameters:
            parameter.tensor.grad = None

    @torch.no_grad()
    def write_back(self, index: int) -> None:
        """Put a member's state into its own optimizer, as if that one had made the steps; no storage is shared."""
        self._state.write(index, self._optimizers[index])

    @torch.no_grad()
    def read_in(self, index: int) -> None:
        """Take a member's state over from its own optimizer, which has made steps meanwhile."""
        self._state.read(index, self._optimizers[index])
        self._lanes = None

    @torch.no_grad()
    def select(self, rows: Sequence[int]) -> None:
        """Keep only these members, in this order; the parameters hold their values only, already."""
        self._optimizers = [self._optimizers[row] for row in rows]
        self._state.keep(rows)
        self._lanes, self._numbers = None, []

    def join(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Append members with their states; the parameters hold their values already.

        Raises:
            ValueError: As in the constructor; nothing has been changed then.
        """
        self._check(optimizers)
        self._add(optimizers)

    @torch.no_grad()
    def _add(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers.extend(optimizers)
        self._state.append(optimizers)
        self._lanes, self._numbers = None, []

    def _check(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        together = [*self._optimizers, *optimizers]
        if reason := refusal(together):
            raise ValueError(f"no vector optimizer for {len(together)} members: {reason}")
        held = together[0].param_groups[0]["params"]
        if len(held) != len(self._parameters):
            raise ValueError(f"the optimizers hold {len(held)} parameters, the stack {len(self._parameters)}")
        for owned, parameter in zip(held, self._parameters, strict=True):
            rows, tensor = len(parameter.tensor), parameter.tensor
            if rows != len(together) or parameter.row(tensor, 0).shape != owned.shape or tensor.dtype != owned.dtype:
                raise ValueError(
                    f"parameter {parameter.name!r} is {tensor.dtype} {tuple(tensor.shape)}, expected {len(together)} members' "
                    f"values of {owned.dtype} {tuple(owned.shape)}"
                )

    def _read_numbers(self) -> None:
        numbers = [self._rule.read(optimizer.param_groups[0]) for optimizer in self._optimizers]
        if numbers == self._numbers:
            return
        if self._lanes is not None and self._pattern(numbers) != self._pattern(self._numbers):
            self._lanes = None
        self._numbers = numbers

    def _pattern(self, numbers: list[Numbers]) -> list[tuple[bool, bool]]:
        """Say what a plan depends on: which neighbours are alike, and who keeps a momentum buffer."""
        buffering = self._rule.buffering(np.array(numbers)).tolist()
        return [(own == before, kept) for own, before, kept in zip(numbers, [None, *numbers], buffering, strict=False)]

    def _plan(self) -> list[Lane]:
        buffering = self._rule.buffering(np.array(self._numbers))
        self._begins_buffers = bool((buffering & ~self._state.buffered[self._stepped]).any())
        cohorts: dict[object, list[int]] = {}
        for index in self._active:
            self._state.require(index, has_buffer=bool(buffering.any()))
            tensor = self._parameters[index].tensor
            past = self._state.steps[index].tobytes(), self._state.buffered[index].tobytes()
            cohorts.setdefault((past, tensor.dtype, tensor.device, *self._state.tensors[index]), []).append(index)
        return [
            lane for members in cohorts.values() for lane in lanes(self._rule, self._cohort(members), self._numbers, self._path)
        ]

    def _cohort(self, indices: list[int]) -> Cohort:
        return Cohort(
            parameters=[self._parameters[index] for index in indices],
            state=[self._state.tensors[index] for index in indices],
            steps=self._state.steps[indices[0]],
            buffered=self._state.buffered[indices[0]],
        )

    def _count(self) -> None:
        if self._rule.counts_steps:
            self._state.steps[self._stepped] += 1
        if self._begins_buffers:
            self._state.buffered[self._stepped] |= self._rule.buffering(np.array(self._numbers))
            self._lanes, self._begins_buffers = None, False
