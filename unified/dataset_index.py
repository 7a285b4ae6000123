"""What is known of data files from earlier runs, so that naming one again costs nothing: small JSON files."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

Fact = dict[str, str | int]


class DatasetIndex:
    """Facts about files, each valid as long as its file is unchanged; kept in ``folder``.

    Each fact is a file of its own, replaced whole, so that several processes can write at once.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def recall(self, kind: str, path: Path) -> Fact | None:
        """Return what :meth:`remember` was given for this file; None if nothing, or if it changed since."""
        return self._read(kind, str(path.resolve()), path)

    def remember(self, kind: str, path: Path, fact: Fact, stamp: list[int]) -> None:
        """Keep ``fact``, of plain JSON values, about the file as it was when ``stamp`` was taken of it."""
        self._write(kind, str(path.resolve()), stamp, fact)

    def first_file(self, name: str, path: Path) -> Path:
        """Return the first file called ``name`` here, if it is unchanged; else ``path``, from now on.

        A file that this process may not open is nothing to it: whoever reads a job sees no other user's folder.
        """
        found = self._read("first", name, None)
        if found is not None:
            first = Path(str(found["path"]))
            return first if _can_be_read(first) else path
        self._write("first", name, file_stamp(path), {"path": str(path.resolve())})
        return path

    def _read(self, kind: str, name: str, path: Path | None) -> Fact | None:
        try:
            entry = json.loads(self._entry(kind, name).read_text(encoding="utf-8"))
            fact = entry["fact"]
            unchanged = entry["stamp"] == file_stamp(path or Path(fact["path"]))
        except (OSError, ValueError, LookupError, TypeError):
            return None  # not known, or damaged: found out anew
        return fact if unchanged else None

    def _write(self, kind: str, name: str, stamp: list[int], fact: Fact) -> None:
        entry = self._entry(kind, name)
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=entry.parent, suffix=".partial")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"name": name, "stamp": stamp, "fact": fact}, file)
        Path(temporary).replace(entry)

    def _entry(self, kind: str, name: str) -> Path:
        return self._folder / f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"


def _can_be_read(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except OSError:
        return False


def file_stamp(path: Path) -> list[int]:
    """Return what changes when the file does, to be taken before reading it; mtime alone can be set back."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
