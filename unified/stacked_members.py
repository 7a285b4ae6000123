"""Members that step as one: one forward, backward and optimizer step for many of them (:mod:`fusion.stacking`).

A member keeps its own module, optimizer, schedule, order of samples and random state. The stack holds copies, and brings a
member up to date when somebody needs it: for an evaluation, a checkpoint, or because it leaves.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusion.stacking.choices import Choices
from fusion.stacking.errors import NotStackableError as DifferentError
from fusion.stacking.member_random import MemberRandom
from fusion.stacking.signature import signature
from fusion.stacking.stack import Stack
from fusion.stacking.training import StackedTraining
from fusion.stacking.width_search import WidthSearch
from unified.components import select_output
from unified.errors import NotStackableError
from unified.member import Member
from unified.random_state import RandomState, preserved_random_state
from unified.stepping import ShapeError

#: How far losses and gradients of the stack may be from the members' own, relative to their norm: rounding, and no more.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}

#: What is fastest for which shape is a fact about this process's machine.
_choices = Choices()
_widths: dict[tuple[object, ...], int] = {}  # how many members at a time, by kind of stack


class StackedMembers:
    """The members of one stack while they step as one.

    Args:
        members: At least one, of one architecture, loss and kind of optimizer, on one device.

    Raises:
        NotStackableError: If they cannot be one; the message says why.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)
        self._num_formed = len(members)
        self._training = _as_one(
            lambda: StackedTraining(
                [member.module for member in members],
                [member.optimizer for member in members],
                random=_random_of(members),
                choices=_choices,
            )
        )
        self._search = WidthSearch(len(self.members))

    def step(self, indices: Sequence[Tensor | None]) -> Tensor:
        """Do one optimizer step of every member on its own batch.

        Args:
            indices: For each member the samples of its batch, int64 ``(batch,)``, as many for each; None for one that sits this
                step out: it was settled before and is taken, or leaves, before the next one.

        Returns:
            The members' losses, detached, ``(members,)``; anything for those that sat out.

        Raises:
            Exception: Whatever model or loss raise; then all members stand as they stood before.
        """
        if len(self.members) == self._num_formed:  # now, when all members are up to date in the stack
            self._training.rewiden(_widths.get(self._kind) or self._search.width)
        began = time.perf_counter()
        size = next(len(index) for index in indices if index is not None)
        # who sits out computes something all the same: leaving the stack and coming back would cost more
        batches = [torch.zeros(size, dtype=torch.int64) if index is None else index for index in indices]
        clips = [member.spec.clip_grad_norm for member in self.members]
        losses = self._training.step(lambda rows: _batches(self.members, batches, rows), _loss_of(self.members[0]), clips)
        for member, index in zip(self.members, indices, strict=True):
            if index is not None:
                member.last_lr = member.optimizer.param_groups[0]["lr"]
                if member.every_step and member.lr_scheduler is not None:
                    member.lr_scheduler.step()
        if self.is_tuning:
            self._note(began)
        return losses

    @property
    def is_tuning(self) -> bool:
        """Whether it is still being found out how many members are best stacked at a time: steps vary in speed till then."""
        return self._num_formed == len(self.members) and not self._search.is_over and self._kind not in _widths

    @property
    def _kind(self) -> tuple[object, ...]:
        submission = self.members[0].submission
        return submission.stack_key or submission.name, len(self.members), torch.get_num_threads()

    def _note(self, began: float) -> None:
        """Take the time of a step of the width that is being tried."""
        if self.members[0].device.type == "cuda":
            torch.cuda.synchronize(self.members[0].device)
        self._search.note(time.perf_counter() - began)
        if self._search.is_over:
            _widths[self._kind] = self._search.width

    def settle(self, member: Member) -> None:
        """Bring a member's own module, optimizer and random state up to date."""
        index = self.members.index(member)
        self._training.settle(index)
        random = self._training.random
        cuda = None if random.cuda is None else random.cuda[index].get_state()
        member.random = RandomState(cpu=random.generators[index].get_state(), cuda=cuda, device=member.random.device)

    def take(self, member: Member) -> None:
        """Go on from a member's own module, optimizer and random state: it has stepped alone meanwhile.

        Raises:
            NotStackableError: If it keeps a state beside these in which it is ahead of the others.
        """
        index = self.members.index(member)
        _as_one(lambda: self._training.take(index))
        self._training.random.put_one(index, member.random.cpu, member.random.cuda)

    def leave(self, member: Member, *, settle: bool = True) -> None:
        """Let a member go; the others are untouched."""
        if settle:
            self.settle(member)
        self._training.remove(self.members.index(member))
        self.members.remove(member)

    def join(self, member: Member) -> None:
        """Let another member of the same kind step along.

        Raises:
            NotStackableError: If it is of another kind; then nothing has changed.
        """
        _as_one(lambda: self._training.append(member.module, member.optimizer, _random_of([member])))
        self.members.append(member)

    def explain(self) -> list[tuple[str, str, int]]:
        """Return (operator, way, how often) of what did not run once for all members."""
        return self._training.explain()


def mismatch(members: Sequence[Member], indices: Sequence[Tensor]) -> str | None:
    """Compare one pass of the stack with each member's own, on copies; say what differs, None if nothing does.

    Args:
        members: Those who are to step as one.
        indices: A batch for each, as many samples for each.

    Raises:
        NotStackableError: If they cannot be one.
    """
    with preserved_random_state(members[0].device):
        modules = [copy.deepcopy(member.module) for member in members]
        optimizers = [torch.optim.SGD(module.parameters(), lr=0.0) for module in modules]
        together = _as_one(lambda: StackedTraining(modules, optimizers, random=_random_of(members), choices=_choices))
        losses = together.gradients(lambda rows: _batches(members, indices, rows), _loss_of(members[0]))
        for index, member in enumerate(members):
            found = _difference(together, index, member, indices[index], losses[index])
            if found is not None:
                return f"job {member.name!r}: {found}"
    return None


def _difference(together: StackedTraining, index: int, member: Member, batch: Tensor, loss: Tensor) -> str | None:
    """Say what of a member differs between the stack and its own forward and backward pass."""
    alone = copy.deepcopy(member.module)
    before = signature(alone)
    member.random.restore()
    inputs, targets = member.train_data.batch(batch, device=member.device)
    own = _loss_of(member)(alone, inputs, targets)
    own.backward()
    changed = next((line for line, was in zip(signature(alone), before, strict=False) if line != was), None)
    if changed is not None:
        return f"its forward keeps a state of its own beside buffers: {changed[:100]}"
    gradients = {name: value.grad for name, value in alone.named_parameters() if value.grad is not None}
    theirs = together.member_gradients(index)
    if gradients.keys() != theirs.keys():
        return f"gradients of {sorted(gradients.keys() ^ theirs.keys())[:3]} come in one way only"
    scale = torch.stack([value.norm() for value in gradients.values()]).norm() if gradients else own.norm()
    checks = [("the loss", loss, own.detach(), own.detach().norm())]
    checks += [(f"the gradient of {name}", theirs[name], value, scale) for name, value in gradients.items()]
    rows = together.member_tensors(index)
    checks += [(name, rows[name], value, value.double().norm()) for name, value in alone.named_buffers() if name in rows]
    for what, one, other, norm in checks:
        if not other.isfinite().all():
            continue  # such a member fails, or goes on regardless, in either way
        distance = (one.double() - other.double()).norm()
        if not bool(distance <= TOLERANCE.get(own.dtype, 1e-3) * (norm.double() + 1e-12)):
            return f"{what} differs by {distance.item():.3g}, of {norm.item():.3g}"
    return None


def _loss_of(member: Member) -> Any:
    """Return the function that gives the loss from module, inputs and targets."""

    def loss(module: nn.Module, inputs: Any, targets: Tensor) -> Tensor:
        output = module(**inputs) if isinstance(inputs, dict) else module(inputs)
        value = member.loss(select_output(output, member.spec.output), targets)
        if value.dim() != 0:
            shape = tuple(value.shape)
            raise ShapeError(f"loss {member.spec.loss.name} returned shape {shape}, expected a scalar; reduce it")
        return value

    return loss


def _batches(members: Sequence[Member], indices: Sequence[Tensor], rows: Sequence[int]) -> tuple[Any, Any]:
    """Gather the batches of some members; those from one dataset at once."""
    chosen = [members[row] for row in rows]
    data, device = chosen[0].train_data, chosen[0].device
    if all(member.train_data is data for member in chosen):
        inputs, targets = data.batch(torch.cat([indices[row] for row in rows]), device=device)
        return Stack.wrap(_parted(inputs, len(rows))), Stack.wrap(_parted(targets, len(rows)))
    batches = [member.train_data.batch(indices[row], device=device) for member, row in zip(chosen, rows, strict=True)]
    return Stack.merge([inputs for inputs, _ in batches]), Stack.merge([targets for _, targets in batches])


def _parted(values: Any, num_members: int) -> Any:
    if isinstance(values, dict):
        return {name: _parted(value, num_members) for name, value in values.items()}
    return values.view(num_members, -1, *values.shape[1:])


def _random_of(members: Sequence[Member]) -> MemberRandom:
    cuda = None
    if members[0].device.type == "cuda":
        cuda = [torch.Generator(member.device) for member in members]
    random = MemberRandom([torch.Generator() for _ in members], cuda)
    random.put([(member.random.cpu, member.random.cuda) for member in members])
    return random


def _as_one(make: Any) -> Any:
    try:
        return make()
    except DifferentError as error:
        raise NotStackableError(str(error)) from error
