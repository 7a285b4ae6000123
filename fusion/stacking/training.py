"""Training steps of many models as one: stacks of a measured width, one optimizer for each.

How many members step at once is a trade: the wider a stack, the fewer operator calls for all members; the narrower, the more
of what one operator leaves is still in the cache when the next one reads it. So models are stacked ``width`` at a time, and the
best width is found by training with each for a few steps (:meth:`StackedTraining.tune`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fusion.stacking.choices import Choices
from fusion.stacking.errors import NotStackableError
from fusion.stacking.group import Batches, Group, Loss
from fusion.stacking.member_random import MemberRandom
from fusion.stacking.plain_attributes import changed_attribute, copy_attributes
from fusion.stacking.stack import stack
from fusion.stacking.vector_optimizer import refusal
from fusion.stacking.width_search import WidthSearch


class StackedTraining:
    """Models of one architecture that make their optimizer steps together.

    Args:
        models: The members; their weights are copied, and come back with :meth:`settle`.
        optimizers: Each member's own, with one group of all its parameters; hyper-parameters are read from it at every step.
        random: Whence each member draws; shared, not copied.
        choices: What is known of the fastest variants of operators.
        width: How many members are in one stack; None: all.
        captures: On a GPU, record each stack's forward and backward as a CUDA graph and replay it (``captured_pass.py``).

    Raises:
        NotStackableError: If models or optimizers differ in more than values.

    Example:
        >>> models = [nn.Linear(3, 2) for _ in range(4)]
        >>> optimizers = [torch.optim.SGD(model.parameters(), lr=0.1 * (i + 1)) for i, model in enumerate(models)]
        >>> training = StackedTraining(models, optimizers)
        >>> x, y = torch.ones(4, 5, 3), torch.zeros(4, 5, dtype=torch.int64)
        >>> from fusion.stacking.stack import Stack
        >>> batches = lambda members: (Stack.wrap(x[members]), Stack.wrap(y[members]))
        >>> loss = lambda module, inputs, targets: nn.functional.cross_entropy(module(inputs), targets)
        >>> training.step(batches, loss).shape
        torch.Size([4])
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        optimizers: Sequence[Optimizer],
        *,
        random: MemberRandom | None = None,
        choices: Choices | None = None,
        width: int | None = None,
        captures: bool = False,
    ) -> None:
        why = refusal(optimizers)
        if why is not None:
            raise NotStackableError(f"the optimizers cannot step as one: {why}")
        self.models, self.optimizers = list(models), list(optimizers)
        device = next(iter(models[0].parameters()), torch.empty(0)).device
        self.random = random or MemberRandom.seeded(range(len(models)), device)
        self.choices = choices or Choices()
        self.width = width or len(models)
        self.captures = captures
        self._groups: list[Group] = []
        self._regroup(self.width)

    @property
    def num_members(self) -> int:
        """How many members there are now."""
        return len(self.models)

    def step(self, batches: Batches, loss: Loss, clips: Sequence[float | None] | None = None) -> Tensor:
        """Make one optimizer step of every member.

        Args:
            batches: Gives the batches of some members.
            loss: Gives each member's loss.
            clips: For each member the largest norm of its gradient, or None.

        Returns:
            The members' losses before the step, detached, ``(members,)``.

        Raises:
            Exception: Whatever model, loss or data raise; then nothing has changed.
        """
        losses = self.gradients(batches, loss)
        for group in self._groups:
            if clips is not None:
                group.optimizer.clip_([clips[position] for position in group.positions])
            group.optimizer.step()
        return losses

    def gradients(self, batches: Batches, loss: Loss) -> Tensor:
        """Run forward and backward for every member; as :meth:`step` without the optimizer."""
        states = self.random.states()
        for group in self._groups:
            group.save()
        try:
            return torch.cat([group.losses(batches, loss) for group in self._groups])
        except BaseException:
            for group in self._groups:
                group.restore()
                group.optimizer.zero_grad()
            self.random.put(states)
            raise

    def tune(self, step: Callable[[], object]) -> dict[int, float]:
        """Find the best width by training: call ``step`` a few times with each and go on with the fastest.

        Args:
            step: Makes one real step of all members, and whatever belongs to it.

        Returns:
            Median seconds of a step by width.
        """
        search = WidthSearch(self.num_members)
        while not search.is_over:
            self.rewiden(search.width)
            search.note(_timed(step))
        self.rewiden(search.width)
        return search.seconds

    def rewiden(self, width: int) -> None:
        """Stack ``width`` members at a time from now on."""
        if width != self.width:
            self.settle_all()
            self._regroup(width)

    def settle(self, position: int) -> None:
        """Bring a member's own model and optimizer up to date."""
        group, row = self._place(position)
        copy_tensors(group.stack.member_tensors(row), tensors_of(self.models[position]))
        copy_attributes(group.stack.template.value.module, self.models[position])
        group.optimizer.write_back(row)

    def settle_all(self) -> None:
        """Bring all members' models and optimizers up to date."""
        for position in range(self.num_members):
            self.settle(position)

    def take(self, position: int) -> None:
        """Go on from a member's own model and optimizer: it has stepped alone meanwhile.

        Raises:
            NotStackableError: If it counts its steps, or the like, and so is ahead of the others now.
        """
        group, row = self._place(position)
        ahead = changed_attribute(self.models[position], group.stack.template.value.module)
        if ahead is not None and len(group.positions) > 1:
            raise NotStackableError(f"member {position} has {ahead} as the others of its stack have")
        copy_attributes(self.models[position], group.stack.template.value.module)
        copy_tensors(tensors_of(self.models[position]), group.stack.member_tensors(row))
        group.optimizer.read_in(row)

    def remove(self, position: int) -> None:
        """Let a member go as it stands; the others move up."""
        group, row = self._place(position)
        rows = [index for index in range(len(group.positions)) if index != row]
        for items in (self.models, self.optimizers):
            del items[position]
        self.random = self.random.select([index for index in range(len(self.models) + 1) if index != position])
        if rows:
            group.stack.select(rows)
            group.optimizer.select(rows)
            group.changed()
            group.positions = [group.positions[index] for index in rows]
        else:
            self._groups.remove(group)
        for each in self._groups:
            each.positions = [index - (index > position) for index in each.positions]

    def append(self, model: nn.Module, optimizer: Optimizer, random: MemberRandom) -> None:
        """Let another member join behind the others.

        Raises:
            NotStackableError: If model or optimizer differ in more than values; then nothing has changed.
        """
        why = refusal([self.optimizers[0], optimizer])
        if why is not None:
            raise NotStackableError(f"the optimizers cannot step as one: {why}")
        group = self._groups[-1]
        group.stack.append([model], random)
        group.optimizer.join([optimizer])
        group.positions.append(self.num_members)
        group.changed()
        self.models.append(model)
        self.optimizers.append(optimizer)
        self.random = self.random.joined(random)

    def member_tensors(self, position: int) -> dict[str, Tensor]:
        """Return a member's parameters and buffers by name, as views."""
        group, row = self._place(position)
        return group.stack.member_tensors(row)

    def member_gradients(self, position: int) -> dict[str, Tensor]:
        """Return a member's gradients by the names of the parameters that have one, as views."""
        group, row = self._place(position)
        found = [(each, each.tensor.grad) for each in group.stack.stacked]
        return {each.name: each.row(gradient, row) for each, gradient in found if gradient is not None}

    def explain(self) -> list[tuple[str, str, int]]:
        """Return (operator, way, how often) of what did not run once for all members of a stack."""
        return [row for group in self._groups for row in group.stack.explain()]

    def _place(self, position: int) -> tuple[Group, int]:
        for group in self._groups:
            if position in group.positions:
                return group, group.positions.index(position)
        raise IndexError(f"there is no member {position}; there are {self.num_members}")

    def _group_of(self, positions: Sequence[int]) -> Group:
        members = stack(
            [self.models[position] for position in positions], random=self.random.select(positions), choices=self.choices
        )
        optimizers = [self.optimizers[position] for position in positions]
        return Group(members, optimizers, positions, captures=self.captures)

    def _regroup(self, width: int) -> None:
        self.width = width
        positions = list(range(self.num_members))
        self._groups = [self._group_of(positions[start : start + width]) for start in range(0, len(positions), width)]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and buffers by name, without gradients; storage is shared."""
    return {name: value.detach() for name, value in [*model.named_parameters(), *model.named_buffers()]}


def copy_tensors(source: dict[str, Tensor], into: dict[str, Tensor]) -> None:
    """Copy the values of tensors that have the same names."""
    names = [name for name in into if name in source]
    if names:
        with torch.no_grad():
            torch._foreach_copy_([into[name] for name in names], [source[name] for name in names])


def _timed(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - began
