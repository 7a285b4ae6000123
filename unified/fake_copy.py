"""Copies of modules whose tensors have a shape, a type and a device, but no memory."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

T = TypeVar("T")

#: What a module may hold that cannot be copied and need not be: the copy uses the same one.
_SHARED = (ModuleType, torch.Generator, type(threading.Lock()), type(threading.RLock()), threading.Event)


def fake_copy(modules: T, mode: FakeTensorMode, device: torch.device) -> T:
    """Copy modules so that every tensor in them becomes a fake one on ``device``.

    Ties between parameters, within a module and between modules, stay ties; hooks are copied along. The originals are
    not touched, and none of their memory is read.

    Args:
        modules: A module or a tuple of them, on any device, ``meta`` included.
        mode: The fake tensors' mode, which must not be entered.
        device: Where the fake tensors pretend to be.
    """
    faker = _Faker(mode, device)
    memo: dict[int, Any] = {}
    for module in _modules(modules):
        for parameter in module.parameters(recurse=False):
            memo[id(parameter)] = faker.parameter(parameter)
        memo |= {id(value): value for value in vars(module).values() if isinstance(value, _SHARED)}
    with faker:
        return copy.deepcopy(modules, memo)


def real_copy(modules: T) -> T:
    """Copy modules with their tensors, ties kept, leaving out what cannot be copied and need not be."""
    memo = {id(value): value for m in _modules(modules) for value in vars(m).values() if isinstance(value, _SHARED)}
    return copy.deepcopy(modules, memo)


def _modules(modules: object) -> list[nn.Module]:
    roots = modules if isinstance(modules, tuple) else (modules,)
    return [module for root in roots if isinstance(root, nn.Module) for module in root.modules()]


class _Faker(TorchFunctionMode):
    """Answers the copying of a real tensor with a fake one; while entered, ``copy.deepcopy`` needs no memory."""

    def __init__(self, mode: FakeTensorMode, device: torch.device) -> None:
        super().__init__()
        self._mode = mode
        self._device = device

    def parameter(self, parameter: nn.Parameter) -> nn.Parameter:
        with self._mode:
            return nn.Parameter(self._fake(parameter), parameter.requires_grad)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self._fake(tensor).requires_grad_(tensor.requires_grad)
            return memo[id(tensor)]
        if func is torch.Tensor.clone:  # how a parameter copies itself that is registered nowhere
            return self._fake(args[0])
        return func(*args, **(kwargs or {}))

    def _fake(self, tensor: torch.Tensor) -> torch.Tensor:
        source = tensor.detach()
        if source.device == self._device or source.layout is not torch.strided:
            return self._mode.from_tensor(source)  # views of one storage stay views of one storage
        with self._mode:
            size, stride = source.size(), source.stride()
            return torch.empty_strided(size, stride, dtype=source.dtype, device=self._device)
