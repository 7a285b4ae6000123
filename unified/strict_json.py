"""Read JSON that somebody handed in: nothing but JSON, of bounded size, and every fault of it told at once."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from unified.errors import InvalidSubmission, Problem

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 32
MAX_DIGITS = 19  #: what 64 bits can hold
MAX_FAULTS = 20  #: as many as are told


def read_json(path: Path, *, job: str) -> object:
    """Return the JSON value in a file.

    Args:
        path: A plain file of at most 16 MiB of UTF-8.
        job: Whose it is, for messages.

    Raises:
        InvalidSubmission: If there is no such file or it is not strict JSON (see :func:`parse_json`).
    """
    refuse = partial(_refuse, job, path.name)
    try:
        status = path.stat()
    except OSError as error:
        refuse("a file", error.strerror or type(error).__name__, f"put {path.name} there and make it readable")
    if not stat.S_ISREG(status.st_mode):
        refuse(
            "a file",
            "a folder" if path.is_dir() else "something else",
            f"replace {path.name} by a plain file",
        )
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        refuse("a readable file", error.strerror or type(error).__name__, "make it readable")
    return parse_json(content, job=job, name=path.name)


def parse_json(content: bytes, *, job: str, name: str) -> object:
    """Return the JSON value that ``content`` is.

    Args:
        content: At most 16 MiB of UTF-8.
        job: Whose it is, for messages.
        name: What it is called in messages.

    Raises:
        InvalidSubmission: With every duplicate key, NaN, infinity, integer beyond 64 bits and text that is not
            Unicode; or with the one thing that keeps the text from being read at all.
    """
    refuse = partial(_refuse, job, name)
    if len(content) > MAX_BYTES:
        refuse(f"at most {MAX_BYTES} bytes", "more", "leave out what is not needed")
    faults = _Faults()
    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=faults.object,
            parse_int=faults.integer,
            parse_constant=faults.constant,
        )
    except UnicodeDecodeError as error:
        refuse("UTF-8 text", f"byte 0x{content[error.start]:02x} at {error.start}", "save it as UTF-8")
    except json.JSONDecodeError as error:
        refuse("JSON", f"{error.msg} in line {error.lineno}, column {error.colno}", "correct it there")
    except RecursionError:
        refuse(f"at most {MAX_DEPTH} levels of nesting", "more", "flatten it")
    _note_depth_and_text(value, faults)
    if faults.found:
        told = faults.found[:MAX_FAULTS]
        raise InvalidSubmission(_problem(job, name, *fault) for fault in told)
    return value


@dataclass(slots=True)
class _Faults:
    """What is found wrong while parsing goes on: ``(expected, given, remedy)`` each."""

    found: list[tuple[str, str, str]] = field(default_factory=list)

    def note(self, expected: str, given: str, remedy: str) -> None:
        if len(self.found) < MAX_FAULTS and (expected, given, remedy) not in self.found:
            self.found.append((expected, given, remedy))

    def object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    self.note("each key once", f"{key[:80]!r} more than once", "keep one of them")
                seen.add(key)
        return result

    def integer(self, digits: str) -> int:
        if len(digits.lstrip("-")) <= MAX_DIGITS:
            return int(digits)
        self.note(f"integers of at most {MAX_DIGITS} digits", f"{digits[:MAX_DIGITS]}…", "use a smaller number")
        return 0

    def constant(self, name: str) -> float:
        self.note("numbers that JSON knows", name, "use a finite number or null")
        return 0.0


def _note_depth_and_text(value: object, faults: _Faults) -> None:
    """Note too deep a nesting, and text with half a surrogate pair, which no file can hold."""
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            faults.note(f"at most {MAX_DEPTH} levels of nesting", "more", "flatten it")
            return
        for text in level:
            if isinstance(text, str) and not _is_unicode(text):
                faults.note("Unicode text", ascii(text[:80]), "remove the escape \\ud…")
        level, depth = [inner for outer in level for inner in _contents(outer)], depth + 1


def _contents(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _problem(job: str, name: str, expected: str, given: str, remedy: str) -> Problem:
    return Problem(code="E-JSON", job=job, field=name, expected=expected, given=given, remedy=remedy)


def _refuse(job: str, name: str, expected: str, given: str, remedy: str) -> NoReturn:
    raise InvalidSubmission([_problem(job, name, expected, given, remedy)]) from None
