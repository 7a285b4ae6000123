"""Read a ``.umodel``: no pickle, no generated code; whatever is wrong with the file ends in ``InvalidSubmission``."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unified.errors import InvalidSubmission, Problem
from unified.submission.graph_rules import graph_faults
from unified.submission.interpreter import ArchiveModule
from unified.submission.safetensors_part import read_header, read_tensor
from unified.submission.umodel_format import (
    GRAPHS,
    MANIFEST,
    MAX_ARCHIVE_BYTES,
    MAX_JSON_BYTES,
    PARTS,
    WEIGHTS,
    GraphRecord,
    MalformedError,
    Manifest,
    decode_graph,
    decode_manifest,
)

_LOCAL_HEADER_BYTES = 30
_REMEDY = "write the file again with unified.export(model, example_inputs, path)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """An archive whose parts have been found, hashed and checked, except for the graphs' own rules.

    Attributes:
        manifest: Its manifest.
        parts: The bytes of each part, mapped.
    """

    manifest: Manifest
    parts: dict[str, memoryview]

    def graph(self, mode: str) -> GraphRecord:
        """Return the graph of ``"train"`` or ``"eval"``; raises MalformedError."""
        part = GRAPHS[mode]
        graph = decode_graph(part, bytes(self.parts[part]))
        faults = graph_faults(graph, self.manifest)
        if faults:
            raise MalformedError((part, "a graph that keeps the rules", fault) for fault in faults[:20])
        return graph

    def tensors(self, *, without: Collection[str] = ()) -> Iterator[tuple[str, Tensor]]:
        """Yield the stored tensors by name, in memory of their own, except those ``without``; raises MalformedError."""
        weights = self.parts[WEIGHTS]
        header = read_header(weights, self.manifest.stored())
        orders = {record.name: record.order for record in self.manifest.tensors}
        for name, entry in header.items():
            if name not in without:
                yield name, read_tensor(weights, entry, orders.get(name))


def load_umodel(path: Path | str, *, job: str | None = None, finite: bool = True) -> ArchiveModule:
    """Return the model stored at ``path``: trainable, on the CPU, in training mode.

    Its parameters and buffers have their original names, order, types and ties, in memory of their own; ``train()`` and
    ``eval()`` choose between the graphs; it takes the inputs that the original took and returns tensors, tuples, lists or dicts
    of them.

    Args:
        path: A file written by :func:`unified.export`.
        job: Whose it is, for messages; the file's name if not given.
        finite: Refuse weights that are NaN or infinite.

    Raises:
        InvalidSubmission: If the file is damaged, or holds what is not allowed.
    """
    path = Path(path)
    with _reporting(path, job):
        archive = open_archive(path)
        graphs = {mode: archive.graph(mode) for mode in GRAPHS}
        tensors = dict(archive.tensors())
        for record in archive.manifest.tensors:
            if finite and record.kind == "parameter" and record.tie is None:
                _check_finite(record.name, tensors[record.name])
        constants = [tensors[f"constant:{i}"] for i in range(len(archive.manifest.constants))]
        return ArchiveModule(archive.manifest, graphs, tensors, constants)


def read_manifest(path: Path | str, *, job: str | None = None) -> Manifest:
    """Return what the archive at ``path`` says of itself: inputs, tensors, number of parameters. Nothing is built.

    Raises:
        InvalidSubmission: If the file is damaged.
    """
    path = Path(path)
    with _reporting(path, job):
        return decode_manifest(bytes(_find_parts(path, _map(path))[MANIFEST]))


def open_archive(path: Path) -> Archive:
    """Map an archive, find its parts and check them against their hashes.

    Raises:
        MalformedError: If anything is wrong.
        OSError: If the file cannot be read.
    """
    parts = _find_parts(path, _map(path))
    manifest = decode_manifest(bytes(parts[MANIFEST]))
    faults = [
        (part, f"SHA-256 {expected[:100]}", digest)
        for part, expected in manifest.parts.items()
        if (digest := hashlib.sha256(parts[part]).hexdigest()) != expected
    ]
    if faults:
        raise MalformedError(faults)
    return Archive(manifest=manifest, parts=parts)


def _map(path: Path) -> memoryview:
    """Map a file; the map is closed when nothing refers to it any more."""
    size = path.stat().st_size
    if not 0 < size <= MAX_ARCHIVE_BYTES:
        raise MalformedError([(path.name, f"1 to {MAX_ARCHIVE_BYTES} bytes", f"{size} bytes")])
    with path.open("rb") as file:
        # copy on write: torch warns of memory that may not be written, though nothing here writes to it
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def _find_parts(path: Path, content: memoryview) -> dict[str, memoryview]:
    """Find where each part lies in the zip; raises MalformedError unless it is laid out as ours are."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
            end = archive.start_dir
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise MalformedError([(path.name, "a zip archive", str(error)[:200])]) from error
    names = [entry.filename for entry in entries]
    if sorted(names) != sorted(PARTS):
        raise MalformedError([(path.name, f"the parts {sorted(PARTS)}", repr(names)[:200])])
    parts: dict[str, memoryview] = {}
    position = 0
    for entry in entries:
        start, stop = _extent(path, content, entry)
        if entry.header_offset < position or stop > end:
            raise MalformedError([(entry.filename, "a place of its own", "one that overlaps another")])
        if entry.filename != WEIGHTS and stop - start > MAX_JSON_BYTES:
            raise MalformedError([(entry.filename, f"at most {MAX_JSON_BYTES} bytes", f"{stop - start}")])
        parts[entry.filename] = content[start:stop]
        position = stop
    return parts


def _extent(path: Path, content: memoryview, entry: zipfile.ZipInfo) -> tuple[int, int]:
    plain = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 0x1
    if not plain or entry.compress_size != entry.file_size:
        raise MalformedError([(entry.filename, "a part stored as it is", "a compressed or encrypted one")])
    header = bytes(content[entry.header_offset : entry.header_offset + _LOCAL_HEADER_BYTES])
    if len(header) < _LOCAL_HEADER_BYTES or header[:4] != b"PK\x03\x04":
        raise MalformedError([(path.name, f"a local header of {entry.filename}", "none")])
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    start = entry.header_offset + _LOCAL_HEADER_BYTES + lengths
    return start, start + entry.file_size


def _check_finite(name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and tensor.numel():
        low, high = torch.aminmax(tensor)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise MalformedError([(name, "finite weights", f"values from {low} to {high}")])


@contextlib.contextmanager
def _reporting(path: Path, job: str | None) -> Iterator[None]:
    """Turn whatever goes wrong while reading into InvalidSubmission."""
    name = job or path.stem
    try:
        yield
    except MalformedError as error:
        raise InvalidSubmission(
            _problem(name, f"{path.name}: {where}", wanted, got) for where, wanted, got in error.faults
        ) from error
    except OSError as error:
        given = error.strerror or type(error).__name__
        raise InvalidSubmission([_problem(name, str(path), "a readable file", given)]) from error


def _problem(job: str, field: str, expected: str, given: str) -> Problem:
    return Problem(code="E-UMODEL", job=job, field=field, expected=expected, given=given, remedy=_REMEDY)
