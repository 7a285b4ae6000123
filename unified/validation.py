"""The stages that a submission passes, in their order, and the stage that each code of a problem belongs to.

A stage that fails ends the checking of what it looked at; all that is wrong within it is told at once. What is independent
of it (a job's data, of its model) is looked at all the same, so that an owner corrects as much as possible in one go.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from unified.errors import Problem


class Stage(IntEnum):
    """The stages of validation, numbered in their order."""

    FILE = 1  #: there, not too large, not a link out of its folder, of a known form that is trusted enough
    CONTAINER = 2  #: a zip with the fixed parts, stored, none twice, none overlapping
    SCHEMA = 3  #: strict JSON of the known fields and types
    HASH = 4  #: every part has the hash that is written down; signatures where they are asked for
    TENSORS = 5  #: stored tensors: header, offsets, types, finite values
    NAMES = 6  #: names of tensors, ties, inputs
    GRAPH = 7  #: references defined before use, arguments as the operators take them, limits
    OPERATORS = 8  #: only what is on the list of allowed operators and classes
    DATA = 9  #: shapes, types, lengths, labels
    HYPERPARAMETERS = 10  #: ranges and combinations of a job's values
    MEMORY = 11  #: what it needs at the requested batch size, in training and evaluation
    STEP = 12  #: one step of training, on a throw-away copy
    ADMISSION = 13  #: limits of the queue and of the machine


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutcome:
    """How one stage went.

    Attributes:
        stage: Which.
        passed: None where it was not reached.
        found: What was looked at, in a few words.
        seconds: How long it took, None where it was not timed by itself.
    """

    stage: Stage
    passed: bool | None
    found: str = ""
    seconds: float | None = None


_CODES: dict[Stage, tuple[str, ...]] = {
    Stage.FILE: ("E-FILE", "E-FOLDER", "E-LINK", "E-PATH", "E-KIND", "E-SIZE", "E-FORM", "E-TRUST", "E-READ", "E-LIMIT"),
    Stage.CONTAINER: ("E-ZIP", "E-PICKLE", "E-TRUSTED", "E-DECLARED"),
    Stage.SCHEMA: ("E-JSON", "E-SCHEMA", "E-VERSION", "E-FIELD", "E-TYPE", "E-MISSING", "E-SWEEP"),
    Stage.HASH: ("E-HASH", "E-SIGN"),
    Stage.TENSORS: ("E-TENSORS", "E-FINITE", "E-STATE"),
    Stage.NAMES: ("E-NAMES",),
    Stage.GRAPH: ("E-GRAPH",),
    Stage.OPERATORS: ("E-OP", "E-CLASS"),
    Stage.DATA: ("E-DATA", "E-LABEL"),
    Stage.HYPERPARAMETERS: ("E-VALUE", "E-NAME"),
    Stage.MEMORY: ("E-FIT",),
    Stage.STEP: ("E-STEP", "E-CRASH"),
    Stage.ADMISSION: ("E-REQUEST", "E-CONFLICT"),
}
_STAGES = {code: stage for stage, codes in _CODES.items() for code in codes}


def stage_of(code: str) -> Stage:
    """Return the stage at which a problem of this code is found; the first one for a code that is not known.

    >>> stage_of("E-OP").name
    'OPERATORS'
    """
    return _STAGES.get(code, Stage.FILE)


def first_failed(problems: Iterable[Problem]) -> Stage | None:
    """Return the earliest stage that a problem belongs to, or None without problems."""
    return min((stage_of(problem.code) for problem in problems), default=None)
