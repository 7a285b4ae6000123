"""The plain values in the description of a pickle: compared with real ones, and told in words."""

from __future__ import annotations

import struct
import types
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch

from unified.submission.pickle_machine import Global, Made, StorageRef
from unified.submission.stored_tensors import ORDERED_DICT

MAX_DEPTH = 4
MAX_SHOWN = 100

_SET = Global("__builtin__", "set")
_SIZE = Global("torch", "Size")
_SCALARS = frozenset({Global("numpy._core.multiarray", "scalar"), Global("numpy.core.multiarray", "scalar")})
_DTYPE = Global("numpy", "dtype")
_ENCODE = Global("_codecs", "encode")
_CODES = {"i8": "q", "i4": "i", "f8": "d", "f4": "f"}


def mapping(described: Any) -> dict[Any, Any] | None:
    """Return a dict or an ``OrderedDict`` as a dict; None if it is none, or has a key twice or one of another kind."""
    if isinstance(described, dict):
        return described
    is_ordered = isinstance(described, Made) and described.maker == ORDERED_DICT and not described.is_new and not described.args
    if not is_ordered:
        return None
    if not all(isinstance(key, str | int) for key, _ in described.items):
        return None
    found = dict(described.items)
    return found if len(found) == len(described.items) and _has_plain_state(described.state) else None


def equals(saved: Any, real: Any, depth: int = 0) -> bool:
    """Return whether what a pickle describes is equal to a real value, type for type."""
    if depth > MAX_DEPTH:
        return False
    if isinstance(real, torch.Size):
        is_size = isinstance(saved, Made) and saved.maker == _SIZE and not saved.is_new and saved.state is None
        return is_size and len(saved.args) == 1 and equals(saved.args[0], tuple(real), depth + 1)
    saved = plain(saved)
    if isinstance(real, set):
        named = saved.args[0] if isinstance(saved, Made) and saved.maker == _SET and len(saved.args) == 1 else None
        return isinstance(named, list) and len(named) == len(real) and all(isinstance(n, str) and n in real for n in named)
    if isinstance(real, OrderedDict | dict):
        found = mapping(saved)
        return found is not None and found.keys() == real.keys() and all(equals(found[k], real[k], depth + 1) for k in real)
    if isinstance(real, tuple | list):
        same = type(saved) is type(real) and len(saved) == len(real)
        return same and all(equals(one, other, depth + 1) for one, other in zip(saved, real, strict=True))
    if isinstance(real, types.FunctionType | types.BuiltinFunctionType):
        return isinstance(saved, Global) and saved == (real.__module__, real.__name__)
    return isinstance(real, bool | int | float | str | None) and type(saved) is type(real) and saved == real


def plain(saved: Any) -> Any:
    """Return a saved ``torch.Size`` as a tuple, numbers of NumPy as Python's, and everything else as it is."""
    if isinstance(saved, Made):
        is_size = saved.maker == _SIZE and not saved.is_new and len(saved.args) == 1
        return saved.args[0] if is_size else _number(saved)
    if isinstance(saved, tuple) and not isinstance(saved, Global):
        return tuple(_number(part) for part in saved)
    return saved


def _number(saved: Any) -> Any:
    """Return a number of NumPy, such as ``np.prod`` gives, as one of Python's."""
    if not isinstance(saved, Made) or saved.maker not in _SCALARS or saved.is_new or len(saved.args) != 2:
        return saved
    dtype, content = saved.args
    is_known = isinstance(dtype, Made) and dtype.maker == _DTYPE and isinstance(content, Made) and content.maker == _ENCODE
    code = _CODES.get(str(dtype.args[0])[:2]) if is_known and dtype.args and isinstance(dtype.args[0], str) else None
    is_little = code is not None and isinstance(dtype.state, tuple) and dtype.state[1:2] == ("<",)
    if not is_little or len(content.args) != 2 or content.args[1] != "latin1" or not isinstance(content.args[0], str):
        return saved
    try:
        return struct.unpack(f"<{code}", content.args[0].encode("latin1"))[0]
    except (struct.error, UnicodeEncodeError):
        return saved


def in_words(value: Any) -> str:
    """Return a short text for a message; of containers within containers it only says that they are there."""
    if isinstance(value, Made):
        return f"a {value.maker}"
    if isinstance(value, Global):
        return str(value)
    if isinstance(value, StorageRef):
        return "a storage"
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, Mapping):
        inner = ", ".join(f"{str(key)[:40]}: {_inner(part)}" for key, part in [*value.items()][:8])
        return f"{{{inner}}}"[: 2 * MAX_SHOWN]
    if isinstance(value, list | tuple):
        inner = ", ".join(_inner(part) for part in value[:8])
        return f"{'[' if isinstance(value, list) else '('}{inner}{']' if isinstance(value, list) else ')'}"[: 2 * MAX_SHOWN]
    if isinstance(value, bool | int | float | str | None):
        return repr(value[:MAX_SHOWN] if isinstance(value, str) else value)
    return f"a {type(value).__name__}"


def _inner(part: Any) -> str:
    # a pickle's containers may hold themselves, or each other so often that nobody could write it all out
    return "…" if isinstance(part, list | tuple | Mapping) and not isinstance(part, Global) else in_words(part)


def _has_plain_state(state: Any) -> bool:
    """Return whether an ``OrderedDict`` has no attributes but the notes of versions that a state dict has."""
    return state is None or (isinstance(state, dict) and state.keys() <= {"_metadata"})
