"""A stack as a plain module of PyTorch alone that answers for all members at once, to be exported, saved and served.

A stack computes through its own tensors and rules; what a trace of it leaves are ordinary operators over ordinary tensors.
Nothing can be measured in a trace, so the stack runs once before it on the very inputs, and the trace takes the ways that were
fastest there.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from fusion.stacking.choices import Repeated
from fusion.stacking.custom_functions import member_by_member
from fusion.stacking.dispatch import StackMode
from fusion.stacking.errors import NotStackableError
from fusion.stacking.rules import RULES
from fusion.stacking.stack import Stack, plain
from fusion.stacking.stacked_tensor import StackedTensor
from fusion.stacking.template import tree_map

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]

_TRACED_ROWS = 2  #: at least so many: of one, torch.export would take the batch for a constant


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A stack in evaluation mode, exported.

    Attributes:
        program: Answers for all members; nothing of ours is needed to run it. Its state dict has the members' names, each value
            ``(members, ...)``.
        batch: The one batch size that it takes; None: any.
        ways: (operator, way, how often) of what does not run once for all members.
    """

    program: ExportedProgram
    batch: int | None
    ways: tuple[tuple[str, str, int], ...]


def answering(stack: Stack, inputs: Inputs, *, one_input: bool = False) -> nn.Module:
    """Return a plain module, of PyTorch's operators alone, that answers for all members in evaluation mode.

    Args:
        stack: It is not changed; the module shares its weights.
        inputs: For example. A tensor, positional ones or named ones: each ``(members, batch, ...)``, or with ``one_input``
            ``(batch, ...)``. The batch may have another size later where the model allows it, see :class:`Exported`.
        one_input: All members get the same input.

    Returns:
        A module that takes such inputs and returns what a member does, every tensor ``(members, batch, ...)``; mappings are
        returned as dicts, without what is no tensor. :func:`set_member` gives a member other weights.

    Raises:
        NotStackableError: If the model draws random numbers, or PyTorch cannot trace it; the message says why.

    Example:
        >>> from fusion.stacking.stack import stack
        >>> module = answering(stack([nn.Linear(3, 2) for _ in range(4)]), torch.ones(5, 3), one_input=True)
        >>> module(torch.ones(7, 3)).shape, dict(module.named_parameters())["weight"].shape
        (torch.Size([4, 7, 2]), torch.Size([4, 2, 3]))
    """
    return export(stack, inputs, one_input=one_input).program.module()


def export(stack: Stack, inputs: Inputs, *, one_input: bool = False) -> Exported:
    """Export a stack in evaluation mode; arguments and errors as of :func:`answering`."""
    args, kwargs = _call(inputs)
    chooser = Repeated(stack.choices)
    mode = StackMode(stack.num_members, rules=RULES, random=stack.random, choices=chooser)
    module = _Answering(stack, mode, names=tuple(kwargs), num_positional=len(args), one_input=one_input)
    dim = 0 if one_input else 1
    with _evaluating(stack), torch.no_grad(), _deterministic():
        module(*args, **kwargs)
        ways = tuple(mode.explain())
        if mode.drew:
            raise NotStackableError("the model draws random numbers when it answers; an exported one would repeat the same")
        program, batch = _traced(module, chooser, args, kwargs, dim)
    return Exported(program=program, batch=batch, ways=ways)


def set_member(module: nn.Module, index: int, state_dict: Mapping[str, Tensor]) -> None:
    """Give a member of an exported stack other weights.

    Args:
        module: Of :func:`answering`, or read back from an archive of it.
        index: The member's.
        state_dict: A member's own.

    Raises:
        KeyError: If a name is missing or unknown.
        ValueError: If a shape differs.
    """
    own = module.state_dict()
    if own.keys() != state_dict.keys():
        missing, unknown = sorted(own.keys() - state_dict.keys()), sorted(state_dict.keys() - own.keys())
        raise KeyError(f"member {index}: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}")
    for name, value in state_dict.items():
        if value.shape != own[name].shape[1:]:
            raise ValueError(f"member {index}: {name} has shape {tuple(value.shape)}, not {tuple(own[name].shape[1:])}")
    with torch.no_grad():
        for name, value in state_dict.items():
            own[name][index].copy_(value)


class _Answering(nn.Module):
    """A stack under its members' names, and under a signature that torch.export can give shapes to."""

    def __init__(self, stack: Stack, mode: StackMode, *, names: tuple[str, ...], num_positional: int, one_input: bool) -> None:
        super().__init__()
        places = _register(self, stack)
        positional = ("input",) if num_positional == 1 else tuple(f"input_{i}" for i in range(num_positional))

        def forward(*args: Tensor, **kwargs: Tensor) -> Any:
            template = stack.template.value
            template.put({source: _aliased(getattr(place, key)) for source, (place, key) in places.items()})
            try:
                if not one_input:
                    args, kwargs = Stack.wrap(args), Stack.wrap(kwargs)
                with mode, member_by_member():
                    return simple(plain(template.module(*args, **kwargs), mode))
            finally:
                template.clear()

        kinds = dict.fromkeys(positional, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        kinds |= dict.fromkeys(names, inspect.Parameter.KEYWORD_ONLY)
        signature = inspect.Signature([inspect.Parameter(name, kind) for name, kind in kinds.items()])
        vars(forward)["__signature__"] = signature  # what torch.export reads
        self.forward = forward


def _register(root: nn.Module, stack: Stack) -> dict[str, tuple[nn.Module, str]]:
    """Put a stack's tensors under the members' names into ``root`` and return where each is to be found."""
    values, hidden, places = stack.tensors(), stack.hidden_buffers(), {}
    for home in stack.template.value.homes:
        *path, key = home.name.split(".")
        place = root
        for part in path:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        value = values[home.source]
        if isinstance(value, nn.Parameter):
            place.register_parameter(key, value)
        else:
            place.register_buffer(key, value, persistent=home.source not in hidden)
        places.setdefault(home.source, (place, key))
    return places


def _traced(
    module: nn.Module, chooser: Repeated, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], dim: int
) -> tuple[ExportedProgram, int | None]:
    """Export with any batch size if the model allows it, else with that of the inputs; return that, too."""
    rows = [tensor.shape[dim] for tensor in (*args, *kwargs.values())]
    # zeros: the archive keeps what it was traced with, and nobody's samples shall be in it
    given = tree_map(torch.zeros_like, (args, kwargs), Tensor)
    several = tree_map(lambda tensor: _repeated(tensor, dim), given, Tensor)
    shapes = ({dim: Dim.AUTO},) * len(args) + ({dim: Dim.AUTO},) * len(kwargs)
    try:
        program = _export(module, chooser, several, shapes)
    except Exception:  # noqa: BLE001 - whatever a free batch size does not agree with
        program = None
    if program is not None and not any(is_concrete_int(size) for size in _batch_sizes(program, dim)):
        return program, None
    try:
        return _export(module, chooser, given, None), rows[0]
    except NotStackableError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise NotStackableError(f"PyTorch cannot trace the model: {type(error).__name__}: {reason}") from error


def _export(module: nn.Module, chooser: Repeated, inputs: Any, shapes: Any) -> ExportedProgram:
    chooser.repeat()
    args, kwargs = inputs
    return torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)


def _batch_sizes(program: ExportedProgram, dim: int) -> list[Any]:
    names = program.graph_signature.user_inputs
    return [node.meta["val"].shape[dim] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]


def _repeated(tensor: Tensor, dim: int) -> Tensor:
    if tensor.shape[dim] >= _TRACED_ROWS:
        return tensor
    return torch.cat([tensor] * _TRACED_ROWS, dim)


def _aliased(value: Tensor) -> StackedTensor:
    made = StackedTensor.of(value)
    made.is_aliased = True
    return made


def _call(inputs: Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return positional inputs and inputs by name."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return ((inputs,) if isinstance(inputs, Tensor) else tuple(inputs)), {}


def simple(output: Any) -> Any:
    """Return an output in containers that any PyTorch can read back: mappings as dicts, without what is no tensor."""
    if isinstance(output, Mapping):
        return {key: simple(value) for key, value in output.items() if _is_simple(value)}
    if isinstance(output, tuple | list):
        items = [simple(item) for item in output]
        return items if isinstance(output, list) else tuple(items)
    return output


def _is_simple(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_simple, value.values()))
    return all(map(_is_simple, value)) if isinstance(value, tuple | list) else value is None or isinstance(value, Tensor)


@contextlib.contextmanager
def _evaluating(stack: Stack) -> Iterator[None]:
    was_training = stack.training
    stack.eval()
    try:
        yield
    finally:
        stack.train(was_training)


def _deterministic() -> contextlib.AbstractContextManager[None]:
    """Keep CUDA from choosing another kernel the second time."""
    return torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=True)
