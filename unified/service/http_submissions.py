"""Routes that hand jobs in: a zip, an upload made before, or a description whose files are uploads."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from anyio import CancelScope, to_thread
from fastapi import APIRouter, Header, Request
from fastapi import Path as InPath
from fastapi.responses import JSONResponse
from starlette.responses import Response

from unified.errors import InvalidSubmission, Problem
from unified.queue.errors import ConflictError, UnknownJobError
from unified.queue.files import temporary_name
from unified.queue.job_folder import name_problem, named_sources, parse_fields, read_fields, renamed
from unified.queue.limits import check_disk
from unified.queue.shared_files import dropped_sources, outside_sources
from unified.queue.unpacking import unpack
from unified.queue.verbs import Queue
from unified.queue.wholeness import is_safetensors
from unified.service.http_auth import Identity, Scope
from unified.service.http_context import Submitter, TheQueue, problems
from unified.service.http_models import Job, Upload, job_model
from unified.service.http_uploads import Uploads, archive_limit, piece_of, receive, receive_bytes
from unified.strict_json import MAX_BYTES, parse_json

router = APIRouter(tags=["submitting"])

_NAME = "job.json"
_SHARED = "shared/"  #: begins the names of files that are kept once for all jobs

Sha256 = Annotated[str, InPath(pattern="^[0-9a-f]{64}$", description="Of the file's content, in lower case.")]
IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=200, description="A repeated request with the same key is the first job again."),
]

_BODY = {
    "required": True,
    "content": {
        "application/zip": {"schema": {"type": "string", "format": "binary", "description": "A zip of a job folder."}},
        "application/json": {
            "schema": {
                "type": "object",
                "description": "Either 'upload' (SHA-256 of an uploaded zip) or 'job' (the content of job.json) with 'files' "
                "(name in the job folder -> SHA-256 of an upload). Other keys are fields of job.json that are to be others.",
                "properties": {
                    "upload": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
                    "job": {"type": "object"},
                    "files": {
                        "description": "What job.json names below 'shared/' is kept once for all jobs with the same content.",
                        "type": "object",
                        "additionalProperties": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
                    },
                },
                "additionalProperties": True,
            }
        },
    },
}


@router.post(
    "/v1/jobs",
    status_code=201,
    response_model=Job,
    responses=problems(409, 413, 415, 422, 507) | {200: {"model": Job, "description": "It was there already."}},
    openapi_extra={"requestBody": _BODY},
)
async def submit_job(
    request: Request, queue: TheQueue, identity: Submitter, idempotency_key: IdempotencyKey = None
) -> JSONResponse:
    """Hand in a job; when this answers, the job survives a power cut."""
    changes = {} if idempotency_key is None else {"client_token": idempotency_key}
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    async with _workshop(queue) as folder:
        if kind == "application/zip":
            archive = folder / "job.zip"
            check_disk(queue.root, queue.config)
            with archive.open("wb") as file:
                await receive(request, file, start=0, limit=archive_limit(queue), queue=queue)
            return await to_thread.run_sync(_submit_archive, queue, identity, archive, changes)
        body = await receive_bytes(request, MAX_BYTES)
        return await to_thread.run_sync(_submit_json, queue, identity, folder, body, changes)


@router.put(
    "/v1/uploads/{sha256}",
    status_code=201,
    response_model=Upload,
    responses=problems(409, 413, 422, 507) | {202: {"model": Upload, "description": "More is to come."}},
    openapi_extra={
        "requestBody": {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
        "parameters": [
            {"name": "Content-Range", "in": "header", "schema": {"type": "string"}, "description": "bytes FIRST-LAST/TOTAL"}
        ],
    },
)
async def put_upload(request: Request, queue: TheQueue, identity: Submitter, sha256: Sha256) -> JSONResponse:
    """Hand in a file, whole or piece by piece with ``Content-Range``; 201 when it is complete."""
    upload = await Uploads(queue, identity.user).take(sha256, piece_of(request), request)
    return JSONResponse(
        upload.model_dump(mode="json", by_alias=True),
        status_code=201 if upload.is_complete else 202,
        headers={"Upload-Offset": str(upload.offset)},
    )


@router.get("/v1/uploads/{sha256}", responses=problems(422))
def show_upload(queue: TheQueue, identity: Submitter, sha256: Sha256) -> Upload:
    """Say how much of a file has come."""
    return Uploads(queue, identity.user).look(sha256)


@router.head("/v1/uploads/{sha256}", response_class=Response, responses=problems(404))
def look_upload(queue: TheQueue, identity: Submitter, sha256: Sha256) -> Response:
    """Say whether a file is here (200), or how much of it (404 with ``Upload-Offset``)."""
    upload = Uploads(queue, identity.user).look(sha256)
    return Response(status_code=200 if upload.is_complete else 404, headers={"Upload-Offset": str(upload.offset)})


@asynccontextmanager
async def _workshop(queue: Queue) -> AsyncIterator[Path]:
    """Make a folder for one request; retention removes what a crash leaves of it."""
    folder = queue.root.uploads / temporary_name()
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(partial(shutil.rmtree, folder, ignore_errors=True))


def _submit_json(queue: Queue, identity: Identity, folder: Path, body: bytes, changes: dict[str, Any]) -> JSONResponse:
    content = parse_json(body, job="?", name="the request")
    if not isinstance(content, dict):
        raise _invalid("?", "the request", "a JSON object", type(content).__name__, "see /docs")
    upload, job, files = (content.pop(key, None) for key in ("upload", "job", "files"))
    content |= changes
    if isinstance(upload, str) and job is None and files is None:
        archive = folder / "job.zip"
        _link(queue, identity, upload, archive)
        return _submit_archive(queue, identity, archive, content)
    if upload is None and isinstance(job, dict):
        return _submit_files(queue, identity, folder, job | content, files if files is not None else {})
    expected = "either 'upload' with a SHA-256, or 'job' with the content of job.json and 'files'"
    raise _invalid("?", "the request", expected, f"the keys {sorted(content)}", "see /docs")


def _submit_archive(queue: Queue, identity: Identity, archive: Path, changes: Mapping[str, Any]) -> JSONResponse:
    folder = archive.with_name("job")
    unpack(queue.root, queue.config, archive, folder, job="?")
    return _submit_folder(queue, identity, folder, read_fields(folder, "?") | dict(changes))


def _submit_files(queue: Queue, identity: Identity, folder: Path, job: dict[str, Any], files: object) -> JSONResponse:
    """Submit what is described, each file under its name in the description."""
    name = str(job.get("name", "?"))[:100]
    if not isinstance(files, dict) or len(files) > (queue.config.max_archive_files or len(files)):
        raise _invalid(name, "files", "an object from a file's name to the SHA-256 of an upload", repr(files)[:80], "see /docs")
    # What the job shares with others goes beside its folder: from there it is taken in once for all that name the same content.
    target, beside = folder / "job", folder / "beside"
    named = {given for given in named_sources(parse_fields(job, name)).values() if given.startswith(_SHARED)}
    target.mkdir()
    for file, sha256 in files.items():
        path = _checked_name(name, file)
        place = (beside if any(path.is_relative_to(given) for given in named) else target) / path
        place.parent.mkdir(parents=True, exist_ok=True)
        _link(queue, identity, sha256, place)
    elsewhere = {given: beside / given for given in named if (beside / given).exists()}
    return _submit_folder(queue, identity, target, job, elsewhere)


def _checked_name(job: str, file: str) -> PurePosixPath:
    path = PurePosixPath(file)
    is_inside = not path.is_absolute() and path.parts and ".." not in path.parts
    if not is_inside or path.name == _NAME or any(name_problem(part, job) for part in path.parts):
        raise _invalid(job, "files", "names of files inside the job folder, but for job.json", ascii(file)[:100], "rename it")
    return path


def _link(queue: Queue, identity: Identity, sha256: object, target: Path) -> None:
    """Give a file that was uploaded a name."""
    uploads = Uploads(queue, identity.user)
    is_hash = isinstance(sha256, str) and len(sha256) == 64 and set(sha256) <= set("0123456789abcdef")
    if not is_hash or not uploads.look(str(sha256)).is_complete:
        given = str(sha256)[:64]
        raise _invalid(
            "?", "upload", "the SHA-256 of a complete upload of yours", given, f"PUT it to /v1/uploads/{given} first"
        )
    try:
        os.link(uploads.path(str(sha256)), target)
    except FileExistsError:
        raise _invalid("?", "files", "each name once", target.name, "rename one of them") from None


def _submit_folder(
    queue: Queue, identity: Identity, folder: Path, job: dict[str, Any], beside: Mapping[str, Path] | None = None
) -> JSONResponse:
    """Submit a folder whose ``job.json`` shall be ``job``, once it names nothing that a client may not name.

    Args:
        queue: Where to.
        identity: Who submits.
        folder: A folder that this request made, and nobody else writes to.
        job: What its ``job.json`` shall say.
        beside: Files that it names and that lie elsewhere, by the name it gives them.
    """
    name = str(job.get("name", "?"))[:100]
    if identity.user is not None:
        job["user"] = identity.user
    job = _with_paths(queue, job, name, beside or {})
    (folder / _NAME).unlink(missing_ok=True)
    (folder / _NAME).write_text(json.dumps(job), encoding="utf-8")
    if queue.config.trust and not identity.may(Scope.TRUST):
        _refuse_code(folder / str(job["model"]), name)
    try:
        submitted = queue.submit(folder, by=identity.by, user=identity.user)
    except ConflictError:
        if _is_anothers(queue, identity, job.get("id")):
            raise ConflictError("that id cannot be used; take another one") from None
        raise
    answer = job_model(submitted.job, queue.reason(submitted.job))
    return JSONResponse(
        answer.model_dump(mode="json", by_alias=True),
        status_code=201 if submitted.is_new else 200,
        headers={"Location": f"/v1/jobs/{submitted.job.id}"},
    )


def _is_anothers(queue: Queue, identity: Identity, job: object) -> bool:
    """Return whether a job of that id is there that this identity may not know of."""
    if identity.sees is None or not isinstance(job, str):
        return False
    try:
        return queue.store.get(job).user != identity.sees
    except UnknownJobError:
        return False


def _with_paths(queue: Queue, job: dict[str, Any], name: str, beside: Mapping[str, Path]) -> dict[str, Any]:
    """Return ``job`` with the paths of the files meant: its own, the operator's shared data, those in data roots.

    Raises:
        InvalidSubmission: If it names any other file of this machine, or with everything that is wrong with it.
    """
    meant = outside_sources(job, name, dropped_sources(queue.root, queue.config)) | dict(beside)
    sources = named_sources(parse_fields(job, name)).items()
    return renamed(job, {field: str(meant[given]) for field, given in sources if given in meant})


def _refuse_code(model: Path, name: str) -> None:
    """Refuse a model that is anything but data, as this token does not let it run code.

    Raises:
        InvalidSubmission: If the model is none of the forms that are data at first sight, whatever the service trusts.
    """
    try:
        is_data = _is_data(model)
    except (OSError, zipfile.BadZipFile, ValueError):
        is_data = False
    if not is_data:
        given = f"{model.name}, which may run code when it is loaded"
        remedy = "write it with unified.export, or use a token with the scope trust"
        raise _invalid(name, "model", "a .umodel, a .safetensors or a folder of transformers", given, remedy, code="E-TRUST")


def _is_data(model: Path) -> bool:
    """Return whether a model is of a form that is never run; what a ``.pt`` holds is not seen from here."""
    if model.is_dir():
        return (model / "config.json").is_file()
    if not zipfile.is_zipfile(model):
        return is_safetensors(model)
    with zipfile.ZipFile(model) as archive:
        return "manifest.json" in archive.namelist()


def _invalid(job: str, field: str, expected: str, given: str, remedy: str, *, code: str = "E-REQUEST") -> InvalidSubmission:
    return InvalidSubmission([Problem(code=code, job=job, field=field, expected=expected, given=given, remedy=remedy)])
