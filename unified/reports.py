"""Take in what another process of ours says, without trusting it: it may be running somebody's code.

Pickled records come over a pipe, and unpickling as such calls whatever the sender names. Here only records of the modules below
are made, so who has taken over a worker can lie about the jobs on its slot, but runs nothing in the engine's process.
"""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Callable
from enum import Enum
from multiprocessing.connection import Connection
from typing import Any, ClassVar, TypeVar

from unified.errors import ReportError

T = TypeVar("T")

_RECORDS = frozenset(
    {
        "schedulers.base",
        "unified.admission",
        "unified.budgets",
        "unified.errors",
        "unified.job",
        "unified.job_parts",
        "unified.messages",
        "unified.validation",
    }
)
_PATHS = frozenset({"pathlib", "pathlib._local"})
_BUILD_CODE = pickle.BUILD[0]
_BUILD = pickle._Unpickler.dispatch[_BUILD_CODE]

logger = logging.getLogger(__name__)


def receive(pipe: Connection, kind: type[T]) -> T:
    """Return the next record from another process, waiting for it.

    Args:
        pipe: To that process.
        kind: What it is to be.

    Raises:
        EOFError: If the other end is closed.
        OSError: If the pipe is broken.
        ReportError: If it sent anything else; the process is not to be listened to any more.
    """
    content = pipe.recv_bytes()
    try:
        record = _Records(io.BytesIO(content)).load()
    except Exception as error:  # damaged pickles raise nearly anything
        logger.warning("a process of ours sent what is no report: %s", error)
        raise ReportError(f"what came is no report: {error}") from error
    if not isinstance(record, kind):
        raise ReportError(f"what came is no {kind.__name__} but a {type(record).__name__}")
    return record


class _Records(pickle._Unpickler):  # the one in C cannot be kept from changing classes and enumerations
    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) == ("builtins", "getattr"):
            return _member  # so Python 3.11 pickles members of enumerations
        is_record = module in _RECORDS or (module in _PATHS and name in {"PosixPath", "WindowsPath"})
        found = super().find_class(module, name) if is_record and "." not in name else None
        if isinstance(found, type) and found.__module__ == module:
            return found
        raise pickle.UnpicklingError(f"{module}.{name} is none of our records")

    def _load_build(self) -> None:
        if isinstance(self.stack[-2], type | Enum) or callable(self.stack[-2]):
            raise pickle.UnpicklingError("what all share is not changed by a report")
        # pyrefly: ignore[bad-argument-type]  # the stubs know of the one in C only
        _BUILD(self)

    dispatch[_BUILD_CODE] = _load_build


def _member(kind: object, name: str) -> Enum:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind[name]
    raise pickle.UnpicklingError(f"{name!r} of {kind!r} is no member of an enumeration")
