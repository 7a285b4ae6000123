"""Several networks as one, in which each neuron knows which tasks need it (PAM, section 5.1).

An edge may lead from a neuron to another only if every task of the second is one of the first's: ``tau_o`` is a subset of
``tau_i``. So a neuron that is needed for some tasks finds all that it reads computed, whatever these tasks are, and has the
same value for all of them. Weights are kept dense, with a mask that holds the other edges at zero: see
:mod:`fusion.merging.specializing` for networks without them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn import functional as F

from fusion.merging.errors import MergeError
from fusion.merging.layers import MAKERS, OWNING, Kind, Slot
from fusion.merging.neurons import INPUT, Neurons, bits_of

Gate = Callable[["Step", Tensor], Tensor]
"""What is done to a feature where it is read: ``(step, feature) -> feature``."""


@dataclass(frozen=True, slots=True)
class Held:
    """Stands in arguments for a tensor of the module, by its name in ``MergedNetwork.constants``."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operator of a merged network.

    Attributes:
        name: Unique.
        kind: What it does.
        inputs: Positions of the steps whose features it takes.
        target: The operator, bound to what it takes by name alone; None for the input.
        args: Its arguments, with :class:`~fusion.merging.layers.Slot` for features and :class:`Held` for tensors; after the
            features and tensors for those of ``OWNING`` kinds.
        space: Number of the space of its neurons.
        tasks: Bits of the tasks that need it.
        shape: Of its feature at one neuron's width, without the batch and the neurons.
        is_read: Whether its neurons have their values here: something that makes other neurons, or an output, reads it.
    """

    name: str
    kind: Kind
    inputs: tuple[int, ...]
    target: Callable[..., Any] | None
    args: tuple[Any, ...]
    space: int
    tasks: int
    shape: tuple[int, ...]
    is_read: bool

    @property
    def positions(self) -> int:
        """Values for each neuron."""
        return torch.Size(self.shape).numel()

    @property
    def is_flat(self) -> bool:
        """Whether its feature is ``(N, neurons * positions)``: after flattening."""
        return len(self.shape) == 1 and self.kind is not Kind.INPUT


class Part(nn.Module):
    """The tensors of one step, a row for each of its neurons."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    mask: Tensor | None

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name in ("weight", "bias"):
            given = tensors.get(name)
            self.register_parameter(name, None if given is None else nn.Parameter(given.detach().clone()))
        for name in ("running_mean", "running_var"):
            given = tensors.get(name)
            self.register_buffer(name, None if given is None else given.detach().clone())
        self.register_buffer("mask", None, persistent=False)

    def masked(self) -> Tensor:
        """Return the weight with the edges that there may not be at zero."""
        assert self.weight is not None
        return self.weight if self.mask is None else self.weight * self.mask


class MergedNetwork(nn.Module):
    """One network for several tasks.

    Args:
        tasks: Their names; bit ``k`` of a group is task number ``k``.
        steps: In the order of execution; the first is the input.
        outputs: Position of the step that answers each task.
        neurons: By space.
        parts: By position, the tensors of the steps that have some.
        constants: Tensors in the arguments of steps.
        frozen: By space the bits of the tasks whose neurons must all stay.

    Its input is what each of the networks took, its output a dict by task.
    """

    def __init__(
        self,
        *,
        tasks: Sequence[str],
        steps: Sequence[Step],
        outputs: Mapping[str, int],
        neurons: Mapping[int, Neurons],
        parts: Mapping[int, Part],
        constants: Mapping[str, Tensor],
        frozen: Mapping[int, int],
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.steps = tuple(steps)
        self.outputs = dict(outputs)
        self.neurons = dict(neurons)
        self.frozen = dict(frozen)
        self.parts = nn.ModuleDict({str(position): part for position, part in parts.items()})
        self.constants = nn.Module()
        for name, value in constants.items():
            if isinstance(value, nn.Parameter):
                self.constants.register_parameter(name, nn.Parameter(value.detach().clone()))
            else:
                self.constants.register_buffer(name, value.detach().clone())
        self.momentum: float | None = None  # of the statistics of normalization, in place of each layer's own
        self.lowerings: dict[object, dict[str, str]] = {}  # what specialize() measured: by subset and sizes, then by layer
        self.set_masks()

    def forward(self, x: Tensor, tasks: Collection[str] | None = None, gate: Gate | None = None) -> dict[str, Tensor]:
        """Answer the tasks.

        Args:
            x: Input ``(N, …)``.
            tasks: Those wanted, all if None; steps that none of them needs are not run.
            gate: Called on every feature that is read, in the spaces that can be pruned.

        Returns:
            Output by task, in the order of :attr:`tasks`.
        """
        wanted = self.bits(tasks)
        values = self.features(x, wanted, gate)
        return {task: values[self.outputs[task]] for number, task in enumerate(self.tasks) if wanted >> number & 1}

    def features(self, x: Tensor, wanted: int, gate: Gate | None = None) -> dict[int, Any]:
        """Return the feature of every step that the tasks ``wanted`` (bits) need, by position."""
        values: dict[int, Any] = {}
        gated = frozenset() if gate is None else self.prunable
        for position, step in enumerate(self.steps):
            if step.tasks & wanted:
                given = [x] if step.kind is Kind.INPUT else [values[source] for source in step.inputs]
                values[position] = self._run(position, step, given)
                if gate is not None and step.is_read and step.space in gated:
                    values[position] = gate(step, values[position])
        return values

    def specialize(
        self,
        tasks: Collection[str],
        *,
        lowering: str | Mapping[str, str] = "auto",
        share: bool = False,
        example: Tensor | None = None,
        single: bool = False,
    ) -> nn.Module:
        """Cut out a plain network for some tasks: see :func:`fusion.merging.specializing.specialize`."""
        from fusion.merging.specializing import specialize  # it builds on this module

        return specialize(self, tasks, lowering=lowering, share=share, example=example, single=single)

    def bits(self, tasks: Collection[str] | None) -> int:
        """Return the bits of some tasks, of all if None.

        Raises:
            MergeError: If there is none, or one is unknown.
        """
        if tasks is None:
            return (1 << len(self.tasks)) - 1
        unknown = sorted(set(tasks) - set(self.tasks))
        if unknown or not tasks:
            what = f"unknown: {', '.join(unknown)}" if unknown else "none"
            raise MergeError(f"expected one or more of the tasks {', '.join(self.tasks)}; got {what}")
        return bits_of(tasks, self.tasks)

    @property
    def prunable(self) -> frozenset[int]:
        """Spaces in which there are neurons that can be removed."""
        return frozenset(
            space
            for space, neurons in self.neurons.items()
            if bool(((neurons.group & ~self.frozen.get(space, 0)) != 0).any()) and space != 0
        )

    def channels(self, step: Step) -> Tensor:
        """Return the positions in its space of the neurons that a step's feature has, ascending."""
        return self.neurons[step.space].of(step.tasks)

    def groups(self, step: Step) -> Tensor:
        """Return for each neuron of a step's feature the bits of the tasks that it serves there."""
        return self.neurons[step.space].group[self.channels(step)] & step.tasks

    def part(self, position: int) -> Part:
        """Return the tensors of a step."""
        part = self.parts[str(position)]
        assert isinstance(part, Part)
        return part

    def set_masks(self) -> None:
        """Make masks anew after neurons have changed."""
        for position, step in enumerate(self.steps):
            if step.kind in MAKERS:
                source, part = self.steps[step.inputs[0]], self.part(position)
                mask = edges(self.groups(step), self.groups(source))
                assert part.weight is not None
                if bool(mask.all()):
                    part.mask = None
                    continue
                mask = mask.repeat_interleave(source.positions, 1) if step.kind is Kind.LINEAR else mask[:, :, None, None]
                part.mask = mask.to(part.weight.device, part.weight.dtype)
                part.weight.data.mul_(part.mask)  # an edge that opens later starts at zero

    def _run(self, position: int, step: Step, given: list[Any]) -> Any:
        if step.kind is Kind.INPUT:
            return given[0]
        if step.kind not in MAKERS:
            given = [self._fitted(step, self.steps[source], value) for source, value in zip(step.inputs, given, strict=True)]
        if step.kind in OWNING:
            return run_owning(step, given[0], self.part(position), training=self.training, momentum=self.momentum)
        if step.kind is Kind.FLATTEN:
            return given[0].flatten(1)
        args = filled(step.args, given, lambda held: getattr(self.constants, held.name))
        assert step.target is not None
        return step.target(*(switched(step, args, training=self.training)))

    def _fitted(self, step: Step, source: Step, value: Any) -> Any:
        """Return a feature with the neurons of the tasks of ``step`` alone, where its source has some of other tasks."""
        if step.tasks == source.tasks or source.space == 0 or not isinstance(value, Tensor):
            return value
        mine, theirs = self.neurons[source.space].of(step.tasks), self.channels(source)
        if len(mine) == len(theirs):
            return value
        chosen = torch.searchsorted(theirs, mine)
        if source.is_flat:
            chosen = (chosen[:, None] * source.positions + torch.arange(source.positions)).flatten()
        return value.index_select(1, chosen.to(value.device))


def edges(rows: Tensor, columns: Tensor) -> Tensor:
    """Return which neurons may read which: bool ``(rows, columns)``, True iff the row's tasks are all the column's."""
    return (rows[:, None] & ~columns[None, :]) == 0


def run_owning(step: Step, value: Tensor, part: Part, *, training: bool, momentum: float | None = None) -> Tensor:
    """Run a step that has tensors of its own."""
    if step.kind is Kind.LINEAR:
        return F.linear(value, part.masked(), part.bias)
    if step.kind is Kind.NORM:
        own, eps = step.args
        momentum = own if momentum is None else momentum
        return F.batch_norm(value, part.running_mean, part.running_var, part.weight, part.bias, training, momentum, eps)
    weight = part.masked()
    stride, padding, dilation = conv_arguments(step)
    groups = len(weight) if step.kind is Kind.DEPTHWISE else 1
    return F.conv2d(value, weight, part.bias, stride, padding, dilation, groups)


def conv_arguments(step: Step) -> tuple[Any, Any, Any]:
    """Return stride, padding and dilation."""
    stride, padding, dilation = (*step.args[:3], *((1, 1), (0, 0), (1, 1))[len(step.args[:3]) :])
    return stride, padding, dilation


def called(step: Step) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the operator of a step, and what it is given by name alone."""
    assert step.target is not None
    return (step.target.func, dict(step.target.keywords)) if isinstance(step.target, partial) else (step.target, {})


def filled(args: Any, given: Sequence[Any], held: Callable[[Held], Any]) -> Any:
    """Return arguments with what the slots stand for."""
    if isinstance(args, Slot):
        return given[args.index]
    if isinstance(args, Held):
        return held(args)
    if isinstance(args, list | tuple):
        return type(args)(filled(value, given, held) for value in args)
    return args


def switched(step: Step, args: Any, *, training: bool) -> Any:
    """Return the arguments of a dropout with the mode that the module is in."""
    is_dropout = isinstance(step.target, OpOverload) and step.target._schema.name.endswith("dropout") and len(args) == 3
    return (*args[:2], training) if is_dropout else args


def input_neurons(num_channels: int, num_tasks: int) -> Neurons:
    """Return the input's channels, which serve all tasks."""
    full = torch.full((num_channels,), (1 << num_tasks) - 1, dtype=torch.int64)
    return Neurons(origin=torch.full_like(full, INPUT), index=torch.arange(num_channels), group=full)
