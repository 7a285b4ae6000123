"""What can be wrong with a model: the fault, the error that carries those of an archive inward, and how they are told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from unified.errors import Problem

#: As many faults of a stage are told; a file with more is not read by hand.
MAX_FAULTS = 20
_REMEDY = "write the file again with unified.export(model, example_inputs, path)"
_MAX_TEXT = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong: ``where`` in the file, what was ``expected``, what came; ``code`` tells its stage."""

    code: str
    where: str
    expected: str
    given: str
    remedy: str = _REMEDY

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, got {self.given}"

    def problem(self, job: str, file: str) -> Problem:
        """Return it as a problem of ``job`` at its place in a file."""
        return self.problem_at(job, file if self.where == file else f"{file}: {self.where}")

    def problem_at(self, job: str, place: str) -> Problem:
        """Return it as a problem of ``job``; what a file's author chose the words of is cut and made printable."""
        return Problem(
            code=self.code,
            job=job,
            field=printable(place),
            expected=printable(self.expected),
            given=printable(self.given),
            remedy=self.remedy,
        )


class MalformedError(ValueError):
    """An archive does not pass a stage: ``faults`` holds what is wrong, the first of many."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(islice(faults, MAX_FAULTS))
        super().__init__("; ".join(map(str, self.faults)))


def refuse(faults: Iterable[Fault]) -> None:
    """Raise MalformedError if there are any faults; no more are looked for than are told."""
    found = tuple(islice(faults, MAX_FAULTS))
    if found:
        raise MalformedError(found)


def malformed(code: str, where: str, expected: str, given: str) -> MalformedError:
    """Return the error for a single fault."""
    return MalformedError([Fault(code=code, where=where, expected=expected, given=given)])


def printable(text: str) -> str:
    r"""Return text without control characters and of bounded length, so that no file name or key writes to a terminal.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    short = text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)
