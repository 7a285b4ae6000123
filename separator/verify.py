"""Prove that what was separated is whole: equal to its source bit for bit, and independent of it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from separator.separate import Separated, live_state, tie_groups

_COMPARED = (bool, int, float, complex, str, bytes, type, torch.dtype, torch.device)


def verify(separated: Separated, module: nn.Module) -> list[str]:
    """Compare a separated state with the module that it was taken from, or loaded into.

    Args:
        separated: What is to be proved.
        module: The module, unchanged since.

    Returns:
        One line for each difference in names, order, shape, dtype, bits (so NaN equals NaN, and 0 is not -0) or ties,
        for each tensor that is not a plain one on the CPU, and for each that shares storage with the module. Empty if
        all is well.
    """
    copies, source = separated.state_dict, live_state(module)
    problems = _key_problems(copies, source)
    for name in copies:
        if name in source:
            problems += [f"{name}: {problem}" for problem in _tensor_problems(copies[name], source[name])]
    problems += [f"{name}: not a plain tensor on the CPU" for name, copy in copies.items() if not _is_plain(copy)]
    storages = {_storage(tensor) for tensor in source.values()} - {None}
    problems += [f"{name}: shares storage with the module" for name, copy in copies.items() if _storage(copy) in storages]
    if not problems and separated.ties != tie_groups(source):
        problems.append(f"ties: expected {tie_groups(source)}, got {separated.ties}")
    return problems


def verify_outputs(original: nn.Module, restored: nn.Module, inputs: object) -> list[str]:
    """Compare the outputs of two modules in eval mode, bit for bit.

    Both see the same random state and the same inputs. Afterwards PyTorch's random state, the modules' modes, their
    buffers and their gradients are what they were.

    Args:
        original: A module.
        restored: The module that should equal it, on the same device.
        inputs: A tensor, a tuple or list of positional arguments, or a mapping of keyword arguments, on that device.

    Returns:
        One line for each difference; empty if there is none.
    """
    return differing_outputs(_eval_outputs(original, inputs), _eval_outputs(restored, inputs))


def differing_outputs(expected: object, given: object) -> list[str]:
    """Compare two outputs of any structure, mappings, sequences, dataclasses or objects, tensors bit for bit.

    What is neither of these nor a plain value such as a number or a text is compared by its type only.

    >>> differing_outputs({"logits": torch.zeros(2)}, {"logits": torch.zeros(3)})
    ["output['logits']: expected shape (2,), got (3,)"]
    """
    left, right = (dict(_leaves(output, "output", ())) for output in (expected, given))
    problems = [f"{path}: missing" for path in left if path not in right]
    problems += [f"{path}: unexpected" for path in right if path not in left]
    for path in left:
        if path in right:
            problems += [f"{path}: {problem}" for problem in _leaf_problems(left[path], right[path])]
    return problems


def _key_problems(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    problems = [f"{name}: missing" for name in expected if name not in given]
    problems += [f"{name}: unexpected" for name in given if name not in expected]
    if not problems and list(given) != list(expected):
        problems.append(f"order: expected {list(expected)}, got {list(given)}")
    return problems


def _tensor_problems(given: Tensor, expected: Tensor) -> list[str]:
    problems = []
    if given.shape != expected.shape:
        problems.append(f"expected shape {tuple(expected.shape)}, got {tuple(given.shape)}")
    if given.dtype != expected.dtype:
        problems.append(f"expected {expected.dtype}, got {given.dtype}")
    if not problems and not torch.equal(given_bits := _bits(given), expected_bits := _bits(expected)):
        num_different = int((given_bits != expected_bits).any(dim=1).sum())
        problems.append(f"{num_different} of {expected.numel()} elements differ")
    return problems


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of each element, shape ``(elements, bytes)``."""
    dense = tensor.detach() if tensor.layout is torch.strided else tensor.detach().to_dense()
    flat = dense.resolve_conj().resolve_neg().to("cpu").contiguous().flatten()
    return flat.view(torch.uint8).view(flat.numel(), flat.element_size())


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and tensor.device.type == "cpu" and not tensor.requires_grad and tensor.grad is None


def _storage(tensor: Tensor) -> tuple[torch.device, int] | None:
    """Where the tensor's storage begins; None if it has none."""
    return (tensor.device, tensor.untyped_storage().data_ptr()) if tensor.numel() else None


def _eval_outputs(module: nn.Module, inputs: object) -> object:
    devices = {tensor.device.index or 0 for tensor in live_state(module).values() if tensor.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(devices=sorted(devices)), _unchanged(module):
        module.eval()
        own = deepcopy(inputs)  # a forward pass may write to its inputs
        if isinstance(own, Mapping):
            return module(**own)
        return module(*own) if isinstance(own, tuple | list) else module(own)


@contextmanager
def _unchanged(module: nn.Module) -> Generator[None, None, None]:
    """Put back every submodule's mode and every buffer, also where the forward pass replaces a buffer."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    buffers = [
        (submodule, name, buffer, buffer.clone())
        for submodule in module.modules()
        for name, buffer in submodule.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for submodule, training in modes:
            submodule.training = training
        for submodule, name, buffer, contents in buffers:
            buffer.copy_(contents)
            setattr(submodule, name, buffer)


def _leaves(value: object, path: str, parents: tuple[int, ...]) -> Iterator[tuple[str, object]]:
    """Walk through a nested value; each leaf comes with the path to it, each container with its type."""
    children = None if id(value) in parents else _children(value)
    if children is None:
        yield path, value
        return
    yield f"{path} (type)", f"{type(value).__module__}.{type(value).__qualname__}"
    for step, child in children:
        yield from _leaves(child, path + step, (*parents, id(value)))


def _children(value: object) -> Iterable[tuple[str, object]] | None:
    """Name what a container holds; None for a leaf."""
    if isinstance(value, _COMPARED) or (isinstance(value, Tensor) and not value.is_nested):
        return None
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", child) for key, child in value.items()]
    if isinstance(value, list | tuple | Tensor):
        return [(f"[{index}]", child) for index, child in enumerate(value)]
    if is_dataclass(value):
        return [(f".{field.name}", getattr(value, field.name)) for field in fields(value)]
    if hasattr(value, "__dict__") and not callable(value):
        return [(f".{name}", child) for name, child in vars(value).items()]
    return None


def _leaf_problems(expected: Any, given: Any) -> list[str]:
    if isinstance(expected, Tensor) and isinstance(given, Tensor):
        return _tensor_problems(given, expected)
    if type(expected) is not type(given):
        return [f"expected a {type(expected).__name__}, got a {type(given).__name__}"]
    # by repr, so that NaN equals NaN and 0.0 is not -0.0
    if isinstance(expected, _COMPARED) and repr(expected) != repr(given):
        return [f"expected {expected!r}, got {given!r}"]
    return []
