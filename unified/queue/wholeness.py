"""Tell a file that is still being copied from a whole one, where its format says so: by its end or its length."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from unified.errors import Problem
from unified.queue.files import open_plain

_ZIP = b"PK\x03\x04"
_PARQUET = b"PAR1"
_MAX_HEADER = 2**20  #: of a safetensors file; a longer one is not looked into
_MAX_STATE = 2**20  #: of the state.json of a folder from save_to_disk


def missing_problems(job: str, sources: Mapping[str, str], files: Iterable[str], folders: Iterable[str]) -> list[Problem]:
    """Return a problem for each named source, by field, that is neither a file nor a folder with something in it."""
    files, folders = set(files), set(folders)
    problems = []
    for field, given in sources.items():
        if given in files or (given in folders and any(name.startswith(f"{given}/") for name in files)):
            continue
        problems.append(
            Problem(
                code="E-FILE",
                job=job,
                field=field,
                expected="a file or folder in the job's folder",
                given=f"nothing at {given!r}" if given not in folders else f"an empty folder {given!r}",
                remedy="put it there, or correct the path, which is relative to job.json",
            )
        )
    return problems


def wholeness_problems(job: str, folder: Path, files: Iterable[str]) -> list[Problem]:
    """Return a problem for each file of ``folder`` that ends too early, or cannot be read."""
    problems = []
    for name in files:
        try:
            fault = _fault(folder / name)
        except FileNotFoundError:
            raise
        except OSError as error:
            fault = error.strerror or type(error).__name__
        if fault is not None:
            problems.append(
                Problem(
                    code="E-FILE",
                    job=job,
                    field=name,
                    expected="a whole file that can be read",
                    given=fault,
                    remedy="copy it again, and check its permissions",
                )
            )
    return problems


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins as a safetensors file does: the length of a header, and an object in JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and 8 + int.from_bytes(start[:8], "little") <= path.stat().st_size


def is_cut_archive(path: Path) -> bool:
    """Return whether a file begins as a zip does, and lacks its end."""
    with path.open("rb") as file:
        return file.read(len(_ZIP)) == _ZIP and not zipfile.is_zipfile(file)


def _fault(path: Path) -> str | None:
    """Return what is missing of a file, None if it is whole or its format does not say."""
    with open_plain(path) as file:
        start = file.read(8)
        size = file.seek(0, 2)
        if path.name == "state.json":
            return _listed_files_fault(path, size)
        if path.suffix == ".safetensors":
            return _safetensors_fault(file, start, size)
        if path.suffix == ".parquet":
            file.seek(max(size - len(_PARQUET), 0))
            return None if size >= 12 and file.read() == _PARQUET else "a Parquet file without its end"
        if start.startswith(_ZIP) or path.suffix in {".umodel", ".pt2"}:
            return None if zipfile.is_zipfile(file) else "an archive without its end"
    return None


def _safetensors_fault(file: BinaryIO, start: bytes, size: int) -> str | None:
    """Return what is missing by the header, which says where each tensor ends; a malformed one is its reader's to tell."""
    length = int.from_bytes(start, "little")
    if len(start) < 8 or 8 + length > size:
        return "a safetensors file without its header"
    if length > _MAX_HEADER:
        return None
    file.seek(8)
    try:
        header = json.loads(file.read(length))
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return "a safetensors file without its end" if 8 + length + max(ends, default=0) > size else None


def _listed_files_fault(path: Path, size: int) -> str | None:
    """Return which files of a dataset's folder are not there yet."""
    if size > _MAX_STATE:
        return None
    try:
        listed = [str(item["filename"]) for item in json.loads(path.read_bytes())["_data_files"]]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    missing = [name for name in listed if not (path.parent / Path(name).name).is_file()]
    return f"a dataset without {missing[0]}" if missing else None
