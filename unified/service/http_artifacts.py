"""Routes about the files of a job's result, or of what is left of one that was given up."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, StreamingResponse
from starlette.responses import Response

from unified.queue.records import JobRow
from unified.queue.verbs import Queue
from unified.service.http_auth import Identity
from unified.service.http_context import Reader, TheQueue, problems
from unified.service.http_models import FileItem, Files
from unified.service.http_problems import HttpError
from unified.service.http_streams import file_pieces

router = APIRouter(tags=["jobs"])

_LETTER = "reason.json"  #: of a job that was given up: see unified.service.job_files
_BYTES: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}, "description": "The file."}}


@router.get("/v1/jobs/{job}/artifacts", responses=problems(404, 409))
def list_artifacts(queue: TheQueue, identity: Reader, job: str) -> Files:
    """List the files of a job's result, or of what is left of one that was given up."""
    named = _artifacts(queue, identity, job)
    return Files(files=[FileItem(name=name, bytes=_size(file)) for name, file in named.items()])


@router.get(
    "/v1/jobs/{job}/artifacts.zip",
    response_class=Response,
    responses=problems(404) | {200: {"content": {"application/zip": {}}, "description": "All files in one."}},
)
def read_artifacts(queue: TheQueue, identity: Reader, job: str) -> Response:
    """Return all files of a job's result in one zip."""
    row = queue.get(job, user=identity.sees)
    named = _artifacts(queue, identity, row.id)
    if not named:
        raise _no_result(row)
    headers = {"Content-Disposition": f'attachment; filename="{row.id}.zip"'}
    return StreamingResponse(_zipped(named), media_type="application/zip", headers=headers)


@router.get("/v1/jobs/{job}/artifacts/{name:path}", response_class=Response, responses=problems(404, 416) | _BYTES)
def read_artifact(queue: TheQueue, identity: Reader, job: str, name: str) -> Response:
    """Return one file of a job's result; ranges are served."""
    row = queue.get(job, user=identity.sees)
    # Looked up among what is there: a name that a client sends is never made into a path.
    file = _artifacts(queue, identity, row.id).get(name)
    if file is None:
        raise _no_result(row, name)
    if isinstance(file, bytes):
        headers = {"Content-Disposition": f'attachment; filename="{_LETTER}"'}
        return Response(file, media_type="application/octet-stream", headers=headers)
    return FileResponse(file, media_type="application/octet-stream", filename=file.name)


def _artifacts(queue: Queue, identity: Identity, job: str) -> dict[str, Path | bytes]:
    """Return the files by name; as content where it is not for everybody who may see the job."""
    folder = queue.artifact_folder(job, user=identity.sees)
    named: dict[str, Path | bytes] = {}
    for path in queue.artifacts(job, user=identity.sees):
        named[path.relative_to(folder).as_posix()] = path
    letter = queue.root.dead(folder.name) / _LETTER
    if folder == letter.parent and _LETTER in named and not identity.is_operator:
        named[_LETTER] = _shown_letter(letter)
    return named


def _shown_letter(path: Path) -> bytes:
    """Return why a job was given up, without whose jobs were beside it and which machine that was."""
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError):
        told = None
    if not isinstance(told, dict):
        return b"{}\n"  # damaged, or gone meanwhile
    neighbours = told.pop("neighbours", ())
    told.pop("host", None)
    told["num_neighbours"] = len(neighbours) if isinstance(neighbours, list) else 0
    return json.dumps(told, indent=2).encode() + b"\n"


def _size(file: Path | bytes) -> int:
    return len(file) if isinstance(file, bytes) else file.stat().st_size


def _no_result(row: JobRow, name: str | None = None) -> HttpError:
    what = "has no result" if name is None else f"has no result file {name[:100]!r}"
    return HttpError(404, "no-artifact", "There is no such file", f"job {row.id} {what}; it is {row.state}")


def _zipped(named: dict[str, Path | bytes]) -> Iterator[bytes]:
    """Yield a zip of files piece by piece, without compression: weights hardly shrink."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name, file in named.items():
            is_path = isinstance(file, Path)
            entry_info = zipfile.ZipInfo.from_file(file, name) if is_path else zipfile.ZipInfo(name)
            with archive.open(entry_info, "w", force_zip64=True) as entry:
                for piece in file_pieces(file) if is_path else [file]:
                    entry.write(piece)
                    yield sink.take()
    yield sink.take()


class _Sink:
    """Where :class:`zipfile.ZipFile` writes, to be taken from there; it cannot seek, so nothing is written twice."""

    def __init__(self) -> None:
        self._held = bytearray()

    def write(self, piece: bytes) -> int:
        """Hold what is written."""
        self._held += piece
        return len(piece)

    def flush(self) -> None:
        """Do nothing: what is held is taken."""

    def close(self) -> None:
        """Do nothing either."""

    def take(self) -> bytes:
        """Return what was written since the last time."""
        taken = bytes(self._held)
        self._held.clear()
        return taken
