"""Find the user's own line in a stack of PyTorch's."""

from __future__ import annotations

import linecache
import random
import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)\n\s*(?P<text>[^\n]*)')
_FOREIGN = (
    str(Path(torch.__file__).parent),
    str(Path(__file__).parent),
    sysconfig.get_paths()["stdlib"] + "/contextlib",
    "<",
)
_RANDOM_FILE = str(random.__file__)


def line_of_error(error: BaseException) -> str | None:
    """Return ``"model.py:12 in forward: if x.sum() > 0:"``, the innermost line outside PyTorch that led to ``error``.

    Lines under the call of a module come before others, such as the one that asked for the export.
    """
    found = None
    for each in _causes(error):
        for frame in traceback.extract_tb(each.__traceback__):
            if not frame.filename.startswith(_FOREIGN) and _inside_module(each, frame):
                found = f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line}"
    return found


def line_in_text(stack: str) -> str | None:
    """Return the innermost line outside PyTorch in a printed stack, as :func:`line_of_error` does."""
    found = None
    for match in _FRAME.finditer(stack):
        if not match["file"].startswith(_FOREIGN):
            found = f"{match['file']}:{match['line']} in {match['function']}: {match['text'].strip()}"
    return found


def own_line(frame: FrameType | None) -> str | None:
    """Return the innermost line outside PyTorch and Python's own library, going outwards from ``frame``."""
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((*_FOREIGN, _RANDOM_FILE)):
            text = linecache.getline(name, frame.f_lineno).strip()
            return f"{name}:{frame.f_lineno} in {frame.f_code.co_name}: {text}"
        frame = frame.f_back
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def _inside_module(error: BaseException, frame: traceback.FrameSummary) -> bool:
    """Whether a frame comes after the first call of a module, that is, belongs to the model."""
    stack = traceback.extract_tb(error.__traceback__)
    calls = [index for index, f in enumerate(stack) if f.filename.endswith("torch/nn/modules/module.py")]
    return bool(calls) and stack.index(frame) > calls[0]
