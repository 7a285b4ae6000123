"""What a search has tried, on disk: it goes on from there after a kill at any point, and memory stays bounded.

The paper keeps its history database in memory (sections 3 and 4.2).
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fusion.graph.errors import FusionError
from fusion.search.weight_files import load_weights, replace_file, save_weights

logger = logging.getLogger(__name__)

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_OURS = ("candidates.jsonl", "table.json", "identity.json")


def check_writable(folder: Path) -> None:
    """Make an output folder, and refuse one that cannot be written: before anything is trained.

    Raises:
        FusionError: With the reason that the system gives.
    """
    probe = folder / f".write-check-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise FusionError(f"the output folder {folder} cannot be written ({error.strerror}); pass another path") from error


class History:
    """The record of one search: a line of JSON per candidate, and weights by key.

    A record counts once its line is complete; the weights it names are in place before that. Only one process may have a
    history open.

    Args:
        folder: Made if missing.
        identity: Of what was searched, in parts that are named when they differ, e.g. `models`, `data`, `settings`.
            JSON values.
        fresh: Throw away what is there.

    Raises:
        FusionError: The folder cannot be written, is in use, was made for other models, data or settings, or is damaged.

    Example:
        >>> import tempfile, torch
        >>> folder = Path(tempfile.mkdtemp())
        >>> with History(folder, {"models": "a", "data": "b", "settings": {"seed": 0}}) as history:
        ...     history.append({"key": "first", "drop": 0.25}, weights={"w": torch.ones(2)}, weights_key="first")
        >>> with History(folder, {"models": "a", "data": "b", "settings": {"seed": 0}}) as history:
        ...     list(history.records()), history.weights("first")
        ([{'key': 'first', 'drop': 0.25}], {'w': tensor([1., 1.])})
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.folder = Path(folder)
        check_writable(self.folder)
        self._weights = self.folder / "weights"
        self._weights.mkdir(exist_ok=True)
        self._lock = _lock(self.folder)
        try:
            if fresh:
                self._clear()
            self._check_identity(identity)
            self.num_records = _mend(self._lines)
            _remove_leftovers(self.folder, self._weights)
            self._file = self._lines.open("ab", buffering=0)
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> History:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have the history."""
        if not self._file.closed:
            self._file.close()
            os.close(self._lock)

    def append(self, record: Mapping[str, Any], *, weights: Mapping[str, Tensor] | None = None, weights_key: str = "") -> None:
        """Write a record, after its weights; it is on disk when this returns. Numbers that are not finite become null.

        Args:
            record: JSON values.
            weights: State dict to keep with it.
            weights_key: Its name.
        """
        if weights is not None:
            self.save_weights(weights_key, weights)
        line = _dump(record).encode() + b"\n"
        end = os.fstat(self._file.fileno()).st_size
        try:
            while line:
                line = line[self._file.write(line) :]  # a full disk takes a part of it first, and then none
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise
        self.num_records += 1

    def records(self) -> Iterator[dict[str, Any]]:
        """Read the records from disk, in the order in which they were written."""
        with self._lines.open("rb") as lines:
            for line in lines:
                yield json.loads(line)

    def save_weights(self, key: str, state: Mapping[str, Tensor]) -> None:
        """Write weights under a key, in place of earlier ones; they are there whole, or not at all."""
        save_weights(self._weights_path(key), state)

    def weights(self, key: str) -> dict[str, Tensor]:
        """Read weights; tensors that were one when they were saved are one again.

        Raises:
            FusionError: There are none under this key.
        """
        path = self._weights_path(key)
        if not path.exists():
            raise FusionError(f"history at {self.folder} has no weights '{key}'; they were not kept, or were removed by hand")
        return load_weights(path)

    def weight_keys(self) -> set[str]:
        """Name all weights that are kept."""
        return {path.stem for path in self._weights.glob("*.safetensors")}

    def drop_weights_except(self, keys: Collection[str]) -> None:
        """Delete all other weights."""
        for key in sorted(self.weight_keys() - set(keys)):
            self._weights_path(key).unlink()

    def save_table(self, table: Mapping[str, Any]) -> None:
        """Write the measured costs, so that a resumed search decides by the same numbers."""
        replace_file(self.folder / "table.json", lambda path: path.write_text(_dump(table)))

    def table(self) -> dict[str, Any] | None:
        """Read the measured costs; None if none were written."""
        path = self.folder / "table.json"
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def _lines(self) -> Path:
        return self.folder / "candidates.jsonl"

    def _weights_path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise FusionError(f"weights cannot be called {key!r}: letters, digits, '_', '-' and '.' name a file")
        return self._weights / f"{key}.safetensors"

    def _check_identity(self, identity: Mapping[str, Any]) -> None:
        path = self.folder / "identity.json"
        ours = json.loads(_dump(identity))
        if not path.exists() and self._lines.exists():
            raise FusionError(f"history at {self.folder} has candidates but no identity.json; use a new path")
        if not path.exists():
            replace_file(path, lambda temporary: temporary.write_text(_dump(ours, indent=2)))
            return
        theirs = json.loads(path.read_text())
        differing = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
        if differing:
            details = "; ".join(_difference(name, theirs.get(name), ours.get(name)) for name in differing)
            raise FusionError(
                f"history at {self.folder} was made for other models, data or settings: {details}; use a new path or --fresh"
            )

    def _clear(self) -> None:
        if not (self.folder / "identity.json").exists():
            return  # not ours, so nothing here is ours to delete
        for path in [*self._weights.glob("*.safetensors"), *(self.folder / name for name in _OURS)]:
            path.unlink(missing_ok=True)  # identity.json last: what is left after a kill is still a history


def _lock(folder: Path) -> int:
    handle = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it when the process ends, however it ends
    except OSError as error:
        os.close(handle)
        raise FusionError(f"history at {folder} is in use by another process; wait for it, or use a new path") from error
    return handle


def _mend(path: Path) -> int:
    """Cut off an incomplete last line, and count the complete ones."""
    path.touch()
    end = count = 0
    with path.open("rb+") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                json.loads(line)
            except ValueError as error:
                if lines.read(1):
                    raise FusionError(f"{path}, line {number} is damaged ({error}); use a new path or --fresh") from error
                break
            end += len(line)
            count += 1
        lines.truncate(end)
    return count


def _remove_leftovers(*folders: Path) -> None:
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            path.unlink()


def _difference(name: str, theirs: object, ours: object) -> str:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        inner = [key for key in sorted(theirs.keys() | ours.keys()) if theirs.get(key) != ours.get(key)]
        return f"{name} ({', '.join(inner)})"
    return name


def _dump(value: object, indent: int | None = None) -> str:
    return json.dumps(finite(value), ensure_ascii=False, allow_nan=False, indent=indent)


def finite(value: Any) -> Any:
    """Return plain values as strict JSON takes them: numbers that are not finite become null, sets sorted lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, frozenset | set):
        return sorted(finite(item) for item in value)
    return value
