"""What a reader of model files raises, and how it becomes the problems that the owner reads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from unified.errors import InvalidSubmission, Problem
from unified.submission.umodel_faults import MalformedError

MAX_FAULTS = 20  #: of one kind, as many as are told


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong with a model; the fields are those of a :class:`~unified.errors.Problem`."""

    code: str
    field: str
    expected: str
    given: str
    remedy: str


class RefusedModelError(ValueError):
    """A model that is not accepted: ``faults`` holds everything that was found wrong with it."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(f"{fault.field}: expected {fault.expected}, got {fault.given}" for fault in self.faults))


def refused(code: str, field: str, expected: str, given: str, remedy: str) -> RefusedModelError:
    """Return the error for a single fault."""
    return RefusedModelError([Fault(code=code, field=field, expected=expected, given=given, remedy=remedy)])


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
        raise InvalidSubmission(_problem(name, fault) for fault in error.faults) from error
    except MalformedError as error:
        remedy = "write the file again"
        faults = [
            Fault(code=f.code, field=f"{path.name}: {f.where}", expected=f.expected, given=f.given, remedy=remedy)
            for f in error.faults
        ]
        raise InvalidSubmission(_problem(name, fault) for fault in faults) from error
    except OSError as error:
        given = error.strerror or type(error).__name__
        fault = Fault(code="E-FILE", field="model", expected="a file that can be read", given=given, remedy="check the path")
        raise InvalidSubmission([_problem(name, fault)]) from error


def _problem(job: str, fault: Fault) -> Problem:
    return Problem(
        code=fault.code,
        job=job,
        field=fault.field,
        expected=fault.expected,
        given=fault.given,
        remedy=fault.remedy,
    )
