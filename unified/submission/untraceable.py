"""Find the lines of a model that a traced graph cannot hold: random numbers of Python or NumPy, and gradients of its own.

Tracing passes over them in silence; that they are there shows only when the graph is compared with the model.
"""

from __future__ import annotations

import contextlib
import functools
import random
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch

from unified.submission.source_lines import own_line

_FUNCTION_FILE = torch.autograd.function.__file__


def untraceable_lines(run: Callable[[], object]) -> list[str]:
    """Run a model and return the lines of its own code at which it does what no graph can hold, each once, in order."""
    found: dict[str, None] = {}

    def note(what: str, frame: FrameType | None) -> None:
        line = own_line(frame)
        if line is not None:
            found.setdefault(f"{what} at {line}")

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call" and isinstance(getattr(argument, "__self__", None), random.Random):
            note("random numbers of Python or NumPy", frame)
        elif event == "call" and frame.f_code.co_name == "apply" and frame.f_code.co_filename == _FUNCTION_FILE:
            note("a custom torch.autograd.Function", frame.f_back)

    before = sys.getprofile()
    with _watched_numpy(lambda: note("random numbers of Python or NumPy", sys._getframe(1))):
        sys.setprofile(watch)
        try:
            run()
        finally:
            sys.setprofile(before)
    return list(found)


@contextlib.contextmanager
def _watched_numpy(on_draw: Callable[[], None]) -> Iterator[None]:
    """Tell of calls of ``np.random``'s functions, which the interpreter's own hook does not see."""

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            on_draw()
            return function(*args, **kwargs)

        return call

    functions = {n: f for n, f in vars(np.random).items() if isinstance(getattr(f, "__self__", None), np.random.RandomState)}
    try:
        for name, function in functions.items():
            setattr(np.random, name, watched(function))
        yield
    finally:
        for name, function in functions.items():
            setattr(np.random, name, function)
