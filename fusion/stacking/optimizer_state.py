"""The optimizer state of all members of a stack, and its way into and out of each member's ordinary optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fusion.stacking.optimizer_rule import BUFFER, Flags, Reals, Rule
from fusion.stacking.stacked_parameter import StackedParameter


class StackedState:
    """State tensors `(members, ...)`, laid out like the values, made when a parameter first needs them.

    Args:
        rule: Says which state there is.
        parameters: Of the stack.

    Attributes:
        tensors: For each parameter, by the key that `torch.optim` uses.
        steps: `(parameters, members)`, the steps made so far; 0 throughout where the kind of optimizer counts none.
        buffered: `(parameters, members)`, whether there is a momentum buffer.
    """

    def __init__(self, rule: Rule, parameters: Sequence[StackedParameter]) -> None:
        self._rule = rule
        self._parameters = parameters
        self._starts = np.zeros(0)  # (members,): what state begins with, 0 but for Adagrad
        self.tensors: list[dict[str, Tensor]] = [{} for _ in parameters]
        self.steps: Reals = np.zeros((len(parameters), 0))
        self.buffered: Flags = np.zeros((len(parameters), 0), dtype=np.bool_)

    def append(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Add members at the end; the parameters have their values already."""
        count = len(optimizers)
        self._starts = np.concatenate([self._starts, [_start(optimizer) for optimizer in optimizers]])
        self.steps = np.concatenate([self.steps, np.zeros((len(self.steps), count))], axis=1)
        self.buffered = np.concatenate([self.buffered, np.zeros((len(self.steps), count), dtype=np.bool_)], axis=1)
        for tensors in self.tensors:
            for key, tensor in tensors.items():
                tensors[key] = torch.cat([tensor, tensor.new_zeros((count, *tensor.shape[1:]))])
        first = len(self._starts) - count
        for offset, optimizer in enumerate(optimizers):
            self.read(first + offset, optimizer)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these members, in this order."""
        chosen = list(rows)
        self._starts, self.steps, self.buffered = self._starts[chosen], self.steps[:, chosen], self.buffered[:, chosen]
        for tensors in self.tensors:
            for key, tensor in tensors.items():
                tensors[key] = tensor.index_select(0, torch.tensor(chosen, dtype=torch.long, device=tensor.device))

    def require(self, index: int, *, has_buffer: bool) -> dict[str, Tensor]:
        """Give a parameter's state, and make what there is not yet.

        Args:
            index: The parameter's.
            has_buffer: Whether a momentum buffer is needed, too.
        """
        tensors = self.tensors[index]
        for key in self._rule.keys:
            if key not in tensors and (has_buffer or key != BUFFER):
                like = self._parameters[index].tensor
                tensors[key] = torch.zeros_like(like, requires_grad=False, memory_format=torch.contiguous_format)
                for member in np.flatnonzero(self._starts):
                    tensors[key][member] = self._starts[member]
        return tensors

    def read(self, member: int, optimizer: torch.optim.Optimizer) -> None:
        """Take over the state that a member's own optimizer holds."""
        for index, owned in enumerate(optimizer.param_groups[0]["params"]):
            entry = optimizer.state.get(owned) or {}
            self.steps[index, member] = float(entry.get("step", 0.0)) if self._rule.counts_steps else 0.0
            self.buffered[index, member] = entry.get(BUFFER) is not None
            tensors = self.require(index, has_buffer=bool(self.buffered[index, member])) if entry else self.tensors[index]
            for key, tensor in tensors.items():
                self._place(index, member, tensor, entry.get(key))

    def _place(self, index: int, member: int, tensor: Tensor, value: Tensor | None) -> None:
        if value is None:
            tensor[member] = self._starts[member]
        else:
            self._parameters[index].row(tensor, member).copy_(value)

    def write(self, member: int, optimizer: torch.optim.Optimizer) -> None:
        """Put a member's state into its own optimizer, in the form in which that one would hold it."""
        group = optimizer.param_groups[0]
        for index, owned in enumerate(group["params"]):
            has_begun = bool(self.steps[index, member] or optimizer.state.get(owned))
            if self._rule.counts_steps and has_begun:
                entry = optimizer.state[owned]
                entry["step"] = _count(self.steps[index, member], entry.get("step"), owned, group)
            for key in self._rule.keys:
                if self.buffered[index, member] if key == BUFFER else has_begun:
                    part = self._parameters[index].row(self.tensors[index][key], member)
                    optimizer.state[owned][key] = part.clone(memory_format=torch.contiguous_format)


def _start(optimizer: torch.optim.Optimizer) -> float:
    return float(optimizer.defaults.get("initial_accumulator_value", 0.0))


def _count(steps: float, held: Tensor | None, owned: Tensor, group: dict[str, object]) -> Tensor:
    """Make the step count as `torch.optim` holds it: on the host, unless a fused or capturable optimizer reads it elsewhere."""
    if held is not None:
        return torch.full_like(held, steps)
    wide = torch.get_default_dtype() == torch.float64 and not group.get("fused")
    device = owned.device if group.get("fused") or group.get("capturable") else torch.device("cpu")
    return torch.tensor(steps, dtype=torch.float64 if wide else torch.float32, device=device)
