"""A model's own ``torch.autograd.Function`` runs member by member.

``Function.apply`` asks no ``__torch_function__``: it would run ``forward`` on stacked tensors where no gradients are recorded,
and ``backward`` would be lost without a word. So while a stack runs, ``apply`` looks whether it was given a stacked tensor.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd import Function
from torch.overrides import _get_current_function_mode_stack

from fusion.stacking import dispatch

_lock = threading.Lock()
_num_running = 0  # stacks, in any thread; with the last one the original is back in its place
_original: Any = Function.__dict__["apply"]


@contextlib.contextmanager
def member_by_member() -> Iterator[None]:
    """Let ``Function.apply`` look for stacked tensors meanwhile."""
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def _count(change: int) -> None:
    global _num_running  # Function.apply is one for the process, and so is the count
    with _lock:
        _num_running += change
        Function.apply = classmethod(_apply) if _num_running else _original  # type: ignore[method-assign, assignment]


def _apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
    mode = next((each for each in reversed(_get_current_function_mode_stack()) if isinstance(each, dispatch.StackMode)), None)
    if mode is None or not dispatch.holds_stacked((*args, *kwargs.values())):
        return _original.__func__(cls, *args, **kwargs)

    def apply(*args: Any, **kwargs: Any) -> Any:
        return _original.__func__(cls, *args, **kwargs)

    apply.__name__ = cls.__name__
    with torch._C.DisableTorchFunction():
        return mode.each(apply, args, kwargs)
