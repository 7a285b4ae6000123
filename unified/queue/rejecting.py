"""Where malformed submissions end, and how their owners learn why: ``rejected/NAME/`` with the entry and its reasons."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from unified.errors import Problem
from unified.queue.files import locked, rename_durably, sync_folder, write_durably
from unified.queue.root import Root

_SUFFIXES = (".job", ".zip", ".json")
_MOST = 100  #: entries of one name that get a number; later ones get a random one


def reject(root: Root, entry: Path, problems: Sequence[Problem], *, name: str | None = None) -> Path:
    """Move an entry of ``incoming/`` to ``rejected/NAME/`` and write there what is wrong with it.

    The reasons are ``reason.json`` for programs and ``reason.txt`` in plain words. If the entry cannot be moved, they are
    there all the same.

    Args:
        root: The queue's folder.
        entry: What to move.
        problems: What is wrong with it.
        name: What to call it there; by default what it is called, without its suffix.

    Returns:
        Its folder there.

    Raises:
        FileNotFoundError: If another process took the entry.
        OSError: If it cannot be moved, or the reasons cannot be written.
    """
    with locked(root.rejected):
        if not os.path.lexists(entry):
            raise FileNotFoundError(str(entry))
        folder = _folder_for(root, entry, name or entry.name)
        _write_reasons(folder, entry.name, problems)
        sync_folder(root.rejected)
        _move(entry, folder / _safe(entry.name, 200))
    return folder


def reasons_text(entry: str, problems: Iterable[Problem]) -> str:
    """Return what is wrong with an entry, in words for its owner."""
    lines = [f"'{_shown(entry)}' was not accepted.", ""]
    for number, problem in enumerate(problems, 1):
        lines += [
            f"{number}. {problem.field}: expected {problem.expected}, got {problem.given}.",
            f"   What to do: {problem.remedy}.  [{problem.code}]",
        ]
    lines += ["", "What was handed in is beside this file. Correct it and drop it into incoming/ again."]
    return _shown("\n".join(lines), keeps_lines=True) + "\n"


def _folder_for(root: Root, entry: Path, name: str) -> Path:
    """Return a folder for the entry: a new one, or one that a crash left before the entry was in it."""
    stem = _stem(name)
    for number in count(1):
        tail = "" if number == 1 else f"-{number}" if number <= _MOST else f"-{secrets.token_hex(4)}"
        folder = root.rejected / f"{stem}{tail}"
        try:
            folder.mkdir()
        except FileExistsError:
            if _waits_for(folder, entry):
                return folder
        else:
            return folder
    raise AssertionError("count() does not end")


def _waits_for(folder: Path, entry: Path) -> bool:
    """Return whether a folder holds the reasons of this very entry, and nothing else."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        if {path.name for path in folder.iterdir()} <= {"reason.json", "reason.txt"}:
            return json.loads((folder / "reason.json").read_bytes())["entry"] == _shown(entry.name)
    return False


def _write_reasons(folder: Path, entry: str, problems: Sequence[Problem]) -> None:
    told = [{key: _shown(text) for key, text in dataclasses.asdict(problem).items()} for problem in problems]
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        if json.loads((folder / "reason.json").read_bytes())["problems"] == told:
            return  # an entry that cannot be moved, tried again
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    content = {"schema": 1, "entry": _shown(entry), "time": now, "problems": told}
    write_durably(folder / "reason.txt", reasons_text(entry, problems).encode())
    write_durably(folder / "reason.json", json.dumps(content, indent=2).encode())


def _move(entry: Path, target: Path) -> None:
    try:
        rename_durably(entry, target)
    except PermissionError:
        if entry.is_symlink():
            raise
        entry.chmod(0o700)  # a folder of our own that we may not write to cannot be moved
        rename_durably(entry, target)


def _stem(name: str) -> str:
    stem = name
    for suffix in _SUFFIXES:
        stem = stem.removesuffix(suffix)
    return _safe(stem, 100)


def _safe(name: str, length: int) -> str:
    """Return a name that shows in any terminal and on any system."""
    return re.sub(r"[^A-Za-z0-9._ -]", "_", name)[:length].strip(". ") or "entry"


def _shown(text: str, *, keeps_lines: bool = False) -> str:
    """Return text in which nothing is half a character, or controls a terminal."""
    plain = text.encode("utf-8", "backslashreplace").decode()
    return "".join(char if char.isprintable() or (keeps_lines and char == "\n") else "\ufffd" for char in plain)
