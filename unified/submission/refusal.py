"""What a reader of model files raises, and how it becomes the problems that the owner reads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from unified.errors import InvalidSubmission
from unified.submission.umodel_faults import MAX_FAULTS, Fault, MalformedError

__all__ = ["MAX_FAULTS", "Fault", "RefusedModelError", "refusals_told", "refused"]


class RefusedModelError(ValueError):
    """A model that is not accepted: ``faults`` holds everything that was found wrong, each with the whole of its place."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(map(str, self.faults)))


def refused(code: str, field: str, expected: str, given: str, remedy: str) -> RefusedModelError:
    """Return the error for a single fault."""
    return RefusedModelError([Fault(code=code, where=field, expected=expected, given=given, remedy=remedy)])


@contextlib.contextmanager
def refusals_told(path: Path, job: str | None) -> Iterator[None]:
    """Turn what a reader raises into ``InvalidSubmission``.

    Args:
        path: What is read; its name goes before the place of a fault within it.
        job: Whose it is, for messages; the path's name if not given.
    """
    name = job or path.stem
    try:
        yield
    except RefusedModelError as error:
        raise InvalidSubmission(fault.problem_at(name, fault.where) for fault in error.faults) from error
    except MalformedError as error:
        faults = [replace(fault, remedy="write the file again") for fault in error.faults]
        raise InvalidSubmission(fault.problem(name, path.name) for fault in faults) from error
    except OSError as error:
        given = error.strerror or type(error).__name__
        fault = Fault(code="E-FILE", where="model", expected="a file that can be read", given=given, remedy="check the path")
        raise InvalidSubmission([fault.problem_at(name, fault.where)]) from error
