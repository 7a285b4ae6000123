"""Several models of one architecture as one module: ``stack`` and its exact inverse, ``unstack``.

The idea is HFTA's for training (Wang et al., MLSys 2021) and NetFuse's for inference (Jeong et al., 2020); both replace
operators by hand-written merged ones. Here a model's own ``forward`` runs once on tensors that stand for all members
(:mod:`fusion.stacking.stacked_tensor`), so that nothing needs to be rewritten.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusion.stacking.choices import Choices
from fusion.stacking.custom_functions import member_by_member
from fusion.stacking.dispatch import StackMode
from fusion.stacking.errors import NotStackableError
from fusion.stacking.member_random import MemberRandom
from fusion.stacking.rules import RULES
from fusion.stacking.signature import difference, held_twice
from fusion.stacking.stacked_parameter import StackedParameter
from fusion.stacking.stacked_tensor import StackedTensor
from fusion.stacking.subset import MAX_KEPT, Subset, checked
from fusion.stacking.template import Template, tree_map


def stack(models: Sequence[nn.Module], *, random: MemberRandom | None = None, choices: Choices | None = None) -> Stack:
    """Make one module of several models of one architecture; their weights are copied.

    Args:
        models: At least one; weights may differ, everything else must not. All in train mode, or all in eval mode.
        random: Whence each member draws; by default generators seeded 0, 1, 2, ….
        choices: What is known of the fastest variants of operators, to be shared between stacks.

    Returns:
        A stack that owns its storage; the models are not changed.

    Raises:
        NotStackableError: If the models differ in more than their weights; the message says in what.

    Example:
        >>> models = [nn.Linear(3, 2) for _ in range(4)]
        >>> many = stack(models)
        >>> many(torch.ones(5, 3)).shape
        torch.Size([4, 5, 2])
        >>> torch.equal(many.unstack()[2].weight, models[2].weight)
        True
    """
    return Stack(models, random=random, choices=choices)


class Stack(nn.Module):
    """Models of one architecture that train and answer as one; see :func:`stack`.

    Its parameters and buffers are the members', ``(members, ...)``, under the members' names with ``/`` for ``.``.
    """

    def __init__(
        self, models: Sequence[nn.Module], *, random: MemberRandom | None = None, choices: Choices | None = None
    ) -> None:
        super().__init__()
        _check(models)
        self.template = _hidden(Template(models[0]))
        self.stacked: list[StackedParameter] = []
        self.training = models[0].training
        self._persistent = _persistent_names(models[0])
        tensors = [_named_tensors(model) for model in models]
        self._strides = {name: _own_strides(value) for name, value in tensors[0].items()}
        for name in dict.fromkeys(home.source for home in self.template.value.homes):
            self._keep(name, torch.stack([each[name].detach() for each in tensors]), tensors[0][name])
        device = next((value.device for value in (*self.parameters(), *self.buffers())), torch.device("cpu"))
        self.random = random or MemberRandom.seeded(range(len(models)), device)
        self.choices = choices or Choices()
        self.mode = StackMode(len(models), rules=RULES, random=self.random, choices=self.choices)
        self._subsets: dict[tuple[int, ...], Subset] = {}

    @property
    def num_members(self) -> int:
        """How many members there are now."""
        return self.mode.num_members

    def _keep(self, name: str, values: Tensor, example: Tensor) -> None:
        if isinstance(example, nn.Parameter):
            parameter = nn.Parameter(values, requires_grad=example.requires_grad)
            self.register_parameter(_flat(name), parameter)
            self.stacked.append(StackedParameter(name=name, tensor=parameter))
        else:
            self.register_buffer(_flat(name), values, persistent=name in self._persistent)

    def tensors(self) -> dict[str, Tensor]:
        """Return all members' tensors, ``(members, ...)``, by the names of a member; of tied ones the first name."""
        own = {**self._parameters, **self._buffers}
        return {name: own[_flat(name)] for name in self._names()}  # type: ignore[misc]  # none of them is None

    def _names(self) -> list[str]:
        return list(dict.fromkeys(home.source for home in self.template.value.homes))

    @contextlib.contextmanager
    def running(self, members: Sequence[int] | None = None) -> Iterator[nn.Module]:
        """Let operators on stacked tensors compute all members' results; gives the module to call with them.

        Inside, losses may be computed from what it returns, too.

        Args:
            members: Positions of those that compute, in this order; None: all. The others cost nothing. Positions side by side
                compute with views; of others copies are kept until weights change (a change through ``.data`` goes unseen).
        """
        template, subset = self.template.value, None if members is None else self._subset(members)
        values = self.tensors() if subset is None else subset.tensors(self.tensors())
        template.put({name: _wrapped(value) for name, value in values.items()})
        try:
            with self.mode if subset is None else subset.mode, member_by_member():
                yield template.module
            _take_back(template.replaced(), values)
        finally:
            template.clear()
            if self._subsets:
                self._settle(subset)

    def _subset(self, members: Sequence[int]) -> Subset:
        """Return some members, those asked for last at the end."""
        wanted = checked(members, self.num_members)
        found = self._subsets.pop(wanted, None)
        if found is None:
            mode = StackMode(len(wanted), rules=RULES, random=self.random.select(wanted), choices=self.choices)
            mode.ways = self.mode.ways
            found = Subset(wanted, mode)
        self._subsets[wanted] = found
        if len(self._subsets) > MAX_KEPT:
            del self._subsets[next(iter(self._subsets))]
        return found

    def _settle(self, ran: Subset | None) -> None:
        """After a run of some members or of all: let what was written reach everybody."""
        is_training = any(module.training for module in self.template.value.module.modules())
        if ran is not None:
            ran.write_back(is_training=is_training)
            self.mode.drew |= ran.mode.drew
            self.mode.asked_values |= ran.mode.asked_values
        for each in self._subsets.values():
            if is_training and each is not ran:
                each.forget_buffers()

    def select(self, members: Sequence[int]) -> None:
        """Keep only these members, in this order; parameters are new ones, without gradients."""
        rows = torch.tensor(list(members))
        self._replace(lambda name, value: value.index_select(0, rows.to(value.device)))
        self._renew(self.random.select(members))

    def append(self, models: Sequence[nn.Module], random: MemberRandom) -> None:
        """Let further models of the same architecture join behind the others; their weights are copied.

        Raises:
            NotStackableError: If one is of another architecture.
        """
        _check([self.member(0), *models])
        tensors = [_named_tensors(model) for model in models]
        self._replace(lambda name, value: torch.cat([value, *(each[name].detach().unsqueeze(0) for each in tensors)]))
        self._renew(self.random.joined(random))

    def _replace(self, function: Callable[[str, Tensor], Tensor]) -> None:
        """Let every tensor be what ``function`` makes of its name in a member and its values."""
        with torch.no_grad():
            for each in self.stacked:
                each.tensor = nn.Parameter(function(each.name, each.tensor), requires_grad=each.tensor.requires_grad)
                self._parameters[_flat(each.name)] = each.tensor
            for name in self._names():
                if _flat(name) in self._buffers:
                    self._buffers[_flat(name)] = function(name, self._buffers[_flat(name)])  # type: ignore[arg-type]

    def _renew(self, random: MemberRandom) -> None:
        self.random = random
        self._subsets.clear()
        self.mode = StackMode(len(random.generators), rules=RULES, random=random, choices=self.choices)

    @staticmethod
    def merge(values: Sequence[Any]) -> Any:
        """Return each member's input as one: tensors of one shape, or equal structures of them."""
        first = values[0]
        if isinstance(first, Tensor):
            return StackedTensor.of(torch.stack(list(values)))
        if isinstance(first, Mapping):
            return {key: Stack.merge([value[key] for value in values]) for key in first}
        if isinstance(first, tuple | list):
            return type(first)(Stack.merge(list(each)) for each in zip(*values, strict=True))
        return first

    @staticmethod
    def wrap(merged: Any) -> Any:
        """Return values that lie in one tensor already, ``(members, ...)``, as one input; storage is shared."""
        return tree_map(StackedTensor.of, merged, Tensor)

    def forward(self, *args: Any, members: Sequence[int] | None = None, **kwargs: Any) -> Any:
        """Answer for all members, or for some.

        Args:
            *args: What one member takes, ``(batch, ...)``: one input for all. :meth:`merge` makes one of different inputs.
            members: Positions of those to answer, in this order, see :meth:`running`; None: all.
            **kwargs: As ``args``, by name.

        Returns:
            What one member returns, every tensor with the members in front: ``(members, batch, ...)``.
        """
        with self.running(members) as module:
            return plain(module(*args, **kwargs), self.mode if members is None else self._subset(members).mode)

    def each(self, inputs: Sequence[Any], members: Sequence[int] | None = None) -> Any:
        """Answer for all members, or for some, each with its own input.

        Args:
            inputs: For each of those that answer a tensor, a tuple of positional ones or a dict of named ones.
            members: Positions of those to answer, as in :meth:`forward`.
        """
        expected = self.num_members if members is None else len(members)
        if len(inputs) != expected:
            raise ValueError(f"expected an input for each of {expected} members, got {len(inputs)}")
        merged = self.merge(inputs)
        if isinstance(merged, dict):
            return self(members=members, **merged)
        return self(*merged, members=members) if isinstance(merged, tuple) else self(merged, members=members)

    def unstack(self) -> list[nn.Module]:
        """Return the members as the modules they were, with the weights they have now; storage is not shared."""
        return [self.member(index) for index in range(self.num_members)]

    def member(self, index: int) -> nn.Module:
        """Return one member as a module of its own; storage is not shared."""
        flags = {each.name: each.tensor.requires_grad for each in self.stacked}
        tensors: dict[str, Tensor] = {}
        for name, value in self.tensors().items():
            row = torch.empty_strided(value.shape[1:], self._strides[name], dtype=value.dtype, device=value.device)
            row.copy_(value.detach()[index])
            tensors[name] = nn.Parameter(row, requires_grad=flags[name]) if name in flags else row
        return self.template.value.filled(tensors, index)

    def member_tensors(self, index: int) -> dict[str, Tensor]:
        """Return a member's parameters and buffers by name, as views, without gradients."""
        return {name: value.detach()[index] for name, value in self.tensors().items()}

    def set_member(self, index: int, state_dict: Mapping[str, Tensor]) -> None:
        """Give a member other weights, as ``nn.Module.load_state_dict`` with ``strict=True`` would.

        Raises:
            KeyError: If a name is missing or unknown.
            ValueError: If a shape differs.
        """
        checked([index], self.num_members)
        own, names = self.member_tensors(index), {home.name: home.source for home in self.template.value.homes}
        wanted = {name for name, source in names.items() if source not in self.hidden_buffers()}
        if wanted - state_dict.keys() or state_dict.keys() - names.keys():
            missing, unknown = sorted(wanted - state_dict.keys()), sorted(state_dict.keys() - names.keys())
            raise KeyError(f"member {index}: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}")
        for name, value in state_dict.items():
            if value.shape != own[names[name]].shape:
                raise ValueError(f"member {index}: {name} has shape {tuple(value.shape)}, not {tuple(own[names[name]].shape)}")
        with torch.no_grad():
            for name, value in state_dict.items():
                own[names[name]].copy_(value)

    def hidden_buffers(self) -> set[str]:
        """Return the names of buffers that are not in a member's state dict."""
        return {name for name in self._names() if _flat(name) in self._buffers and name not in self._persistent}

    def explain(self) -> list[tuple[str, str, int]]:
        """Return (operator, way, how often) of what did not run once for all members in the runs so far."""
        return self.mode.explain()

    def train(self, mode: bool = True) -> Stack:
        """Set train or eval mode of all members."""
        super().train(mode)
        self.template.value.module.train(mode)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Stack:
        super()._apply(fn, recurse)
        self.template.value.module._apply(fn)
        self._subsets.clear()
        for each in self.stacked:
            each.tensor = self._parameters[_flat(each.name)]  # type: ignore[assignment]
        return self


class _hidden:  # noqa: N801 - a box, so that nn.Module does not take the template for a part of the stack
    def __init__(self, value: Template) -> None:
        self.value = value


def plain(output: Any, mode: StackMode) -> Any:
    """Return an output as plain tensors, ``(members, ...)``; what all members share is repeated for each. Within the run."""

    def one(value: Tensor) -> Tensor:
        value = mode.own(value)
        if type(value) is StackedTensor:
            return value.merged()
        return value.unsqueeze(0).expand(mode.num_members, *value.shape)

    return tree_map(one, output, Tensor)


def _take_back(replaced: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Keep the values of buffers that the module has replaced by other tensors."""
    with torch.no_grad():
        for name, value in replaced.items():
            own[name].copy_(value.merged() if type(value) is StackedTensor else value)


def _flat(name: str) -> str:
    return name.replace(".", "/")


def _wrapped(value: Tensor) -> StackedTensor:
    made = StackedTensor.of(value)
    made.is_aliased = True  # a write to a buffer must reach the buffer
    return made


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def _own_strides(value: Tensor) -> tuple[int, ...]:
    """Return the strides of a copy of its own: those of ``value``, if it fills its memory."""
    return torch.empty_like(value, device="meta").stride()


def _persistent_names(model: nn.Module) -> frozenset[str]:
    return frozenset(model.state_dict(keep_vars=True))


def _check(models: Sequence[nn.Module]) -> None:
    if not models:
        raise NotStackableError("expected at least one model, got none")
    if any(isinstance(value, nn.UninitializedParameter) for value in models[0].parameters()):
        raise NotStackableError("a lazy module has no weights yet; call it once before")
    if isinstance(models[0], torch.jit.ScriptModule):
        raise NotStackableError("a TorchScript module cannot be looked into; stack the module that it was scripted from")
    for name, value in models[0].named_parameters():
        if value.dim() > 3 and not value.is_contiguous():
            raise NotStackableError(f"{name} lies channels-last in memory, and so would dropout draw for each member alone")
    if held := held_twice(models[0]):
        raise NotStackableError(f"{held}, where all members would find the weights of one")
    for index, model in enumerate(models[1:], start=1):
        found = difference(models[0], model)
        if found is not None:
            raise NotStackableError(f"model {index} is not of the architecture of model 0: {found}")
        if model.training != models[0].training:
            raise NotStackableError(f"model {index} is in {'train' if model.training else 'eval'} mode, model 0 is not")
