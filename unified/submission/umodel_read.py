"""Read a ``.umodel``: no pickle, no generated code; whatever is wrong with the file ends in ``InvalidSubmission``."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from unified.errors import InvalidSubmission
from unified.submission.graph_rules import check_graphs
from unified.submission.interpreter import ArchiveModule
from unified.submission.safetensors_part import Entry, read_tensor
from unified.submission.umodel_faults import Fault, MalformedError, malformed, refuse
from unified.submission.umodel_format import (
    GRAPHS,
    MANIFEST,
    MAX_ARCHIVE_BYTES,
    WEIGHTS,
    GraphRecord,
    Manifest,
    decode_graph,
    decode_manifest,
)
from unified.submission.umodel_names import name_faults
from unified.submission.umodel_tensors import check_tensors
from unified.submission.umodel_zip import find_parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """An archive whose parts have been found, parsed and hashed: the stages of its size, zip, schema and hashes are passed.

    Attributes:
        manifest: Its manifest.
        graphs: Its graphs by mode; their own rules are not checked yet.
        parts: The bytes of each part, mapped.
    """

    manifest: Manifest
    graphs: dict[str, GraphRecord]
    parts: dict[str, memoryview]

    def entries(self, *, finite: bool) -> dict[str, Entry]:
        """Pass the stage of tensors: return where each stored one lies; raises MalformedError."""
        return check_tensors(self.manifest, self.parts[WEIGHTS], finite=finite)

    def check_model(self) -> None:
        """Pass the stages of names, graphs and operators; raises MalformedError."""
        refuse(name_faults(self.manifest, self.graphs))
        check_graphs(self.graphs, self.manifest)

    def tensors(self, entries: Mapping[str, Entry], *, without: Collection[str] = ()) -> Iterator[tuple[str, Tensor]]:
        """Yield the stored tensors by name, in memory of their own, except those ``without``."""
        orders = {record.name: record.order for record in self.manifest.tensors}
        for name, entry in entries.items():
            if name not in without:
                yield name, read_tensor(self.parts[WEIGHTS], entry, orders.get(name))


def load_umodel(path: Path | str, *, job: str | None = None, finite: bool = True) -> ArchiveModule:
    """Return the model stored at ``path``: trainable, on the CPU, in training mode.

    Its parameters and buffers have their original names, order, types and ties, in memory of their own; ``train()`` and
    ``eval()`` choose between the graphs; it takes the inputs that the original took and returns tensors, tuples, lists or dicts
    of them.

    The file passes the stages of :mod:`unified.validation` in their order; nobody may write to it meanwhile, as it is mapped.

    Args:
        path: A file written by :func:`unified.export`.
        job: Whose it is, for messages; the file's name if not given.
        finite: Refuse weights that are NaN or infinite.

    Raises:
        InvalidSubmission: If the file is damaged, or holds what is not allowed: with all that is wrong at the first stage
            that it does not pass.
    """
    path = Path(path)
    with _reporting(path, job):
        archive = open_archive(path)
        entries = archive.entries(finite=finite)
        archive.check_model()
        tensors = dict(archive.tensors(entries))
        constants = [tensors[f"constant:{i}"] for i in range(len(archive.manifest.constants))]
        return ArchiveModule(archive.manifest, archive.graphs, tensors, constants)


def read_manifest(path: Path | str, *, job: str | None = None) -> Manifest:
    """Return what the archive at ``path`` says of itself: inputs, tensors, number of parameters. Nothing is built.

    Raises:
        InvalidSubmission: If the file is damaged.
    """
    path = Path(path)
    with _reporting(path, job):
        manifest = decode_manifest(bytes(find_parts(_map(path))[MANIFEST]))
        refuse(name_faults(manifest, {}))
        return manifest


def open_archive(path: Path) -> Archive:
    """Map an archive, find its parts, parse them and check them against their hashes.

    Raises:
        MalformedError: If anything is wrong.
        OSError: If the file cannot be read.
    """
    parts = find_parts(_map(path))
    manifest, *graphs = _decoded(
        lambda: decode_manifest(bytes(parts[MANIFEST])),
        *(lambda part=part: decode_graph(part, bytes(parts[part])) for part in GRAPHS.values()),
    )
    refuse(
        Fault(code="E-HASH", where=part, expected=f"SHA-256 {expected[:100]}", given=digest)
        for part, expected in manifest.parts.items()
        if (digest := hashlib.sha256(parts[part]).hexdigest()) != expected
    )
    return Archive(manifest=manifest, graphs=dict(zip(GRAPHS, graphs, strict=True)), parts=parts)


def _decoded(*decoders: Callable[[], Any]) -> list[Any]:
    """Decode all parts; what is wrong with any of them is told together."""
    records, errors = [], []
    for decode in decoders:
        try:
            records.append(decode())
        except MalformedError as error:
            errors.append(error)
    if errors:
        raise MalformedError(chain.from_iterable(error.faults for error in errors)) from errors[0]
    return records


def _map(path: Path) -> memoryview:
    """Map a file; the map is closed when nothing refers to it any more."""
    size = path.stat().st_size
    if not 0 < size <= MAX_ARCHIVE_BYTES:
        raise malformed("E-SIZE", "the archive", f"1 to {MAX_ARCHIVE_BYTES} bytes", f"{size} bytes")
    with path.open("rb") as file:
        # copy on write: torch warns of memory that may not be written, though nothing here writes to it
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


@contextlib.contextmanager
def _reporting(path: Path, job: str | None) -> Iterator[None]:
    """Turn whatever goes wrong while reading into InvalidSubmission."""
    name = job or path.stem
    try:
        yield
    except MalformedError as error:
        raise InvalidSubmission(fault.problem(name, path.name) for fault in error.faults) from error
    except OSError as error:
        given = error.strerror or type(error).__name__
        fault = Fault(code="E-READ", where=path.name, expected="a readable file", given=given, remedy="make it readable")
        raise InvalidSubmission([fault.problem(name, path.name)]) from error
