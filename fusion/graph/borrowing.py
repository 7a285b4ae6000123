"""Run a user's model in another mode without the user noticing."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fusion.graph.errors import CaptureError


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of ``model`` by name, tied ones under each of theirs."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


@contextmanager
def borrowed(model: nn.Module, *, training: bool, is_lent: bool = False) -> Iterator[nn.Module]:
    """Yield a copy of the model that shares its tensors, in the mode wanted; the model itself stays as it is.

    Args:
        model: The user's model.
        training: The mode wanted.
        is_lent: Whether to yield the model itself and put its mode back: its forward reaches modules past itself (by a lambda
            over one, say), where no copy can follow.

    Raises:
        CaptureError: If the model does not have that mode.
    """
    used = model if is_lent else _twin(model)
    modes = [(module, module.training) for module in used.modules()]
    try:
        _set_mode(used, training=training)
        with _without_fast_path():
            yield used
    finally:
        for module, mode in modes:
            module.training = mode


def _twin(model: nn.Module) -> nn.Module:
    shared: dict[int, Any] = {id(value): value for value in tensors_of(model).values()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return copy.deepcopy(model, dict(shared))
    except Exception:  # noqa: BLE001  an attribute may raise anything when it is copied: locks, tensors with a history
        modules = list(model.modules())
        shared.update((id(module), type(module).__new__(type(module))) for module in modules)
        for module in modules:
            shared[id(module)].__dict__.update((name, _copied(value, shared)) for name, value in module.__dict__.items())
        return shared[id(model)]


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """Return a copy of an attribute; the attribute itself where it cannot be copied."""
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # noqa: BLE001  see above
        return value


def _set_mode(model: nn.Module, *, training: bool) -> None:
    try:
        model.train(training)
    except NotImplementedError:  # the module of an exported program has one mode, that of evaluation
        if training:
            raise CaptureError("the module has no mode for training") from None


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Keep a frozen transformer layer from becoming one operator that only evaluation has."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)
