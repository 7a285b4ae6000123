"""What two models must have in common to be members of one stack: everything but the values of their weights.

The signature of a model lists, module by module, class and plain attributes, and names, shapes and dtypes of parameters and
buffers. A module that knows better what it is made of says so with a method ``structure()``, which then stands for its
attributes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

_INTERNAL = frozenset(nn.Module().__dict__)
_MAX_DEPTH = 6


def signature(model: nn.Module) -> tuple[str, ...]:
    """Return what a model's architecture is, line by line; equal models have equal lines.

    Example:
        >>> signature(nn.Linear(3, 2)) == signature(nn.Linear(3, 2)), signature(nn.Linear(3, 2)) == signature(nn.Linear(3, 4))
        (True, False)
    """
    lines = [line for name, module in model.named_modules(remove_duplicate=False) for line in _module_lines(name, module)]
    return (*lines, *_tensor_lines(model), *_tie_lines(model))


def difference(one: nn.Module, other: nn.Module) -> str | None:
    """Say in one line how two models differ in architecture; None if they do not."""
    ours, theirs = signature(one), signature(other)
    for mine, yours in zip(ours, theirs, strict=False):
        if mine != yours:
            return f"{mine[:200]} against {yours[:200]}"
    if len(ours) != len(theirs):
        longer = ours if len(ours) > len(theirs) else theirs
        return f"only one of them has {longer[min(len(ours), len(theirs))][:200]}"
    return None


def digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's signature."""
    return hashlib.sha256("\n".join(signature(model)).encode()).hexdigest()


def _module_lines(name: str, module: nn.Module) -> Iterable[str]:
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    structure = getattr(module, "structure", None)
    if callable(structure):
        yield f"module {name or 'the model'}: {kind} {described(structure())}"
        return
    if isinstance(module, fx.GraphModule):
        yield f"module {name or 'the model'}: a traced graph {described(module.code)}"
        return
    own = {key: value for key, value in vars(module).items() if key not in _INTERNAL and not key.startswith("_flat_weight")}
    yield f"module {name or 'the model'}: {kind} {described(own)}"
    hooks = [key for key in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks") if getattr(module, key)]
    if hooks:
        yield f"hooks of {name or 'the model'}: {[described(getattr(module, key)) for key in hooks]}"


def _tensor_lines(model: nn.Module) -> Iterable[str]:
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield f"parameter {name}: {_shape(parameter)}{'' if parameter.requires_grad else ', frozen'}"
    for name, buffer in model.named_buffers(remove_duplicate=False):
        yield f"buffer {name}: {_shape(buffer)}"


def _tie_lines(model: nn.Module) -> Iterable[str]:
    first: dict[int, str] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        if first.setdefault(id(tensor), name) != name:
            yield f"{name} is {first[id(tensor)]}"


def _shape(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def described(value: Any, depth: int = 0) -> str:
    """Return a text that is equal for equal values: numbers, names, containers, tensors by content, objects by attributes."""
    if depth > _MAX_DEPTH:
        return type(value).__qualname__
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device | torch.Size):
        return repr(value)
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
        return f"tensor {_shape(value)} {hashlib.sha256(content).hexdigest()}"
    if isinstance(value, nn.Module):
        return f"module {type(value).__qualname__}"
    if isinstance(value, Mapping):
        return (
            "{" + ", ".join(f"{described(key, depth + 1)}: {described(item, depth + 1)}" for key, item in value.items()) + "}"
        )
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(described(item, depth + 1) for item in value)) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(described(item, depth + 1) for item in value) + "]"
    return _object(value, depth)


def _object(value: Any, depth: int) -> str:
    name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    if callable(value) and hasattr(value, "__qualname__"):
        return name
    if is_dataclass(value):
        return name + described({field.name: getattr(value, field.name, None) for field in fields(value)}, depth + 1)
    return name + described(getattr(value, "__dict__", {}), depth + 1)
