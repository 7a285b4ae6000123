"""What two models must have in common to be members of one stack: everything but the values of their weights.

The signature of a model lists, module by module, class and plain attributes, and names, shapes and dtypes of parameters and
buffers. A module that knows better what it is made of says so with a method ``structure()``, which then stands for its
attributes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from torch import Tensor, fx, nn

from fusion.stacking.described import Description

_INTERNAL = frozenset(nn.Module().__dict__)
_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)  # fmt: skip
_SHOWN = 120  #: of a line that differs, on either side


def signature(model: nn.Module) -> tuple[str, ...]:
    """Return what a model's architecture is, line by line; equal models have equal lines.

    Example:
        >>> signature(nn.Linear(3, 2)) == signature(nn.Linear(3, 2)), signature(nn.Linear(3, 2)) == signature(nn.Linear(3, 4))
        (True, False)
    """
    return (*_module_lines(model), *_tensor_lines(model), *_tie_lines(model))


def difference(one: nn.Module, other: nn.Module) -> str | None:
    """Say in one line how two models differ in architecture; None if they do not."""
    ours, theirs = signature(one), signature(other)
    for mine, yours in zip(ours, theirs, strict=False):
        if mine != yours:
            return _told_apart(mine, yours)
    if len(ours) != len(theirs):
        longer = ours if len(ours) > len(theirs) else theirs
        return f"only one of them has {longer[min(len(ours), len(theirs))][:_SHOWN]}"
    return None


def digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's signature."""
    return hashlib.sha256("\n".join(signature(model)).encode()).hexdigest()


def held_twice(model: nn.Module) -> str | None:
    """Say which plain attribute holds a parameter or buffer, which nobody would find there; None if there is none."""
    description = Description(model)
    for name, module in model.named_modules():
        for key, value in _attributes(module).items():
            description.of(value)
            if description.held:
                return f"attribute {key!r} of {name or 'the model'} holds the tensor {description.held[0]}"
    return None


def _told_apart(mine: str, yours: str) -> str:
    """Return two lines, their long common beginning left out."""
    common = next((i for i, (one, other) in enumerate(zip(mine, yours, strict=False)) if one != other), len(mine))
    what, found, _ = mine.partition(": ")
    if common < _SHOWN or not found:
        return f"{mine[:_SHOWN]} against {yours[:_SHOWN]}"
    start = common - _SHOWN // 3
    return f"{what}: …{mine[start : start + _SHOWN]} against …{yours[start : start + _SHOWN]}"


def _module_lines(model: nn.Module) -> Iterator[str]:
    description = Description(model)
    for name, module in model.named_modules(remove_duplicate=False):
        where = name or "the model"
        yield f"module {where}: {type(module).__module__}.{type(module).__qualname__}"
        if module.training != model.training:
            yield f"{where}: in {'train' if module.training else 'eval'} mode, unlike the whole"
        for key, value in _attributes(module).items():
            yield f"{where}.{key}: {description.of(value)}"
        for key in _HOOKS:
            if hooks := getattr(module, key):
                yield f"{where}, {key[1:].replace('_', ' ')}: {description.of(list(hooks.values()))}"


def _attributes(module: nn.Module) -> dict[str, object]:
    """Return what was set on a module beside parameters, buffers and submodules, or what it says of itself instead."""
    structure = getattr(module, "structure", None)
    if callable(structure):
        told = structure()
        return told if isinstance(told, dict) else {"structure": told}
    if isinstance(module, fx.GraphModule):
        return {"code": module.code}
    if type(module).__module__.startswith("torch.export"):  # what checks the inputs of an exported program
        return {}
    return {key: value for key, value in vars(module).items() if key not in _INTERNAL and not key.startswith("_flat_weight")}


def _tensor_lines(model: nn.Module) -> Iterable[str]:
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield f"parameter {name}: {_shape(parameter)}{'' if parameter.requires_grad else ', frozen'}"
    kept = model.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        yield f"buffer {name}: {_shape(buffer)}{'' if name in kept else ', not persistent'}"


def _tie_lines(model: nn.Module) -> Iterable[str]:
    first: dict[int, str] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        if first.setdefault(id(tensor), name) != name:
            yield f"{name} is {first[id(tensor)]}"


def _shape(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype} {tensor.device}"
