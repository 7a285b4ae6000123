"""Open a ``.pt`` written by ``torch.save``: the pickle in it as a description, the data of its storages where they lie."""

from __future__ import annotations

import mmap
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified.submission.pickle_machine import MAX_BYTES, describe_pickle
from unified.submission.refusal import RefusedModelError, refused
from unified.submission.umodel_format import MAX_ARCHIVE_BYTES

_MAX_ENTRIES = 100_000
_LOCAL_HEADER_BYTES = 30
_REMEDY = "write it again with torch.save"
_STORAGE = re.compile(r"data/[0-9]{1,9}")
_OTHER_PARTS = frozenset(
    {"data.pkl", "byteorder", "version", ".format_version", ".storage_alignment", ".data/serialization_id"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchFile:
    """What is in a ``.pt``.

    Attributes:
        root: What its pickle describes; see :func:`unified.submission.pickle_machine.describe_pickle`.
        storages: The bytes of each storage by its key, mapped.
    """

    root: Any
    storages: dict[str, memoryview]


def open_torch_file(path: Path) -> TorchFile:
    """Map a ``.pt`` and describe its pickle.

    Raises:
        RefusedModelError: If it is no zip as ``torch.save`` writes it, or its pickle is malformed.
        OSError: If it cannot be read.
    """
    parts = _find_parts(path, map_file(path))
    if "data.pkl" not in parts:
        raise _damaged(path.name, "the parts that torch.save writes", "an archive without data.pkl")
    if bytes(parts.get("byteorder", b"little")[:10]) != b"little":
        raise _damaged("byteorder", "a file of a little-endian machine", "another")
    if len(parts["data.pkl"]) > MAX_BYTES:
        raise _damaged("data.pkl", f"at most {MAX_BYTES} bytes", f"{len(parts['data.pkl'])} bytes")
    storages = {name.removeprefix("data/"): part for name, part in parts.items() if _STORAGE.fullmatch(name)}
    return TorchFile(root=describe_pickle(bytes(parts["data.pkl"])), storages=storages)


def map_file(path: Path) -> memoryview:
    """Map a file; the map is closed when nothing refers to it any more.

    Raises:
        RefusedModelError: If it is empty or too large.
        OSError: If it cannot be read.
    """
    size = path.stat().st_size
    if not 0 < size <= MAX_ARCHIVE_BYTES:
        raise refused("E-SIZE", path.name, f"1 to {MAX_ARCHIVE_BYTES} bytes", f"{size} bytes", _REMEDY)
    with path.open("rb") as file:
        # copy on write: torch warns of memory that may not be written, though nothing here writes to it
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def _find_parts(path: Path, content: memoryview) -> dict[str, memoryview]:
    """Find where each part lies, by its name without the archive's own before it."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
            end = archive.start_dir
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, UnicodeDecodeError) as error:
        raise _damaged(path.name, "a zip archive", str(error)[:200]) from error
    if len(entries) > _MAX_ENTRIES:
        raise _damaged(path.name, f"at most {_MAX_ENTRIES} parts", f"{len(entries)}")
    prefixes = {entry.filename.partition("/")[0] for entry in entries}
    parts: dict[str, memoryview] = {}
    position = 0
    for entry in entries:
        name = entry.filename.partition("/")[2]
        known = name in _OTHER_PARTS or _STORAGE.fullmatch(name)
        if len(prefixes) != 1 or not known or name in parts:
            raise _damaged(path.name, "the parts that torch.save writes, each once", repr(entry.filename)[:200])
        start, stop = _extent(content, entry)
        if entry.header_offset < position or stop > end:
            raise _damaged(name, "a place of its own", "one that overlaps another")
        parts[name] = content[start:stop]
        position = stop
    return parts


def _extent(content: memoryview, entry: zipfile.ZipInfo) -> tuple[int, int]:
    plain = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 0x1
    if not plain or entry.compress_size != entry.file_size:
        raise _damaged(entry.filename[:200], "a part stored as it is", "a compressed or encrypted one")
    header = bytes(content[entry.header_offset : entry.header_offset + _LOCAL_HEADER_BYTES])
    if len(header) < _LOCAL_HEADER_BYTES or header[:4] != b"PK\x03\x04":
        raise _damaged(entry.filename[:200], "a local header", "none")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    start = entry.header_offset + _LOCAL_HEADER_BYTES + lengths
    return start, start + entry.file_size


def _damaged(field: str, expected: str, given: str) -> RefusedModelError:
    return refused("E-ZIP", field, expected, given, _REMEDY)
