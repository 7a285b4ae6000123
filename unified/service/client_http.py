"""A client's way to a queue over HTTP: files go up by content, each once; results come down and are checked."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx

from serving.http.loopback import is_loopback_host
from unified.errors import InvalidSubmission, Problem, UnifiedError
from unified.quantities import bytes_text
from unified.queue.errors import AmbiguousIdError, ConflictError, RefusedError, UnknownJobError
from unified.queue.files import hash_file
from unified.queue.job_folder import list_folder, named_sources, parse_fields, read_fields, renamed
from unified.queue.shared_files import submitter_sources
from unified.service.client_doors import Standing, standing_of
from unified.service.http_models import Job, Upload
from unified.sweeps import member_fields

_TRIES = 6  #: of a request whose connection broke: about 6 s in all
_FIRST_WAIT_SECONDS = 0.2
_MAX_WAIT_SECONDS = 30.0
_PIECE_BYTES = 1 << 20

_ERRORS: dict[str, type[UnifiedError]] = {
    "unknown-job": UnknownJobError,
    "ambiguous-id": AmbiguousIdError,
    "conflict": ConflictError,
    "fenced": ConflictError,
    "refused": RefusedError,
    "too-large": RefusedError,
    "disk-full": RefusedError,
}

T = TypeVar("T")


class ServiceError(UnifiedError):
    """The service cannot be reached, does not know the token, or answered with an error of its own."""


class HttpDoor:
    """The queue behind an address.

    Args:
        url: Where the service is, such as ``http://127.0.0.1:8080``.
        token: A token of its token file, if it has one.
    """

    def __init__(self, url: str, token: str | None) -> None:
        address = httpx.URL(url.rstrip("/") + "/")
        self._http = httpx.Client(
            base_url=address,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(60.0, connect=10.0),
            trust_env=not is_loopback_host(address.host),  # no proxy leads to this machine
        )
        self._url = url

    def submit(self, folder: Path) -> list[str]:
        """Hand in a job folder with the files that it names, or all members of its sweep; what is there is not sent again."""
        job, files = _describe(folder)
        hashes = {name: self._upload(path) for name, path in files.items()}
        answers = (self._ask("POST", "v1/jobs", json={"job": fields, "files": hashes}) for fields in member_fields(job))
        return [str(answer.json()["id"]) for answer in answers]

    def look(self, job: str) -> Standing:
        """Return where a job stands."""
        return standing_of(Job.model_validate(self._ask("GET", _path(job)).json()))

    def ask(self, verb: str, job: str, *, wait_seconds: float | None = None, from_scratch: bool = False) -> None:
        """Ask something of a job."""
        options: dict[str, Any] = {"from_scratch": True} if from_scratch else {}
        if wait_seconds is not None:
            options["wait_seconds"] = min(wait_seconds, _MAX_WAIT_SECONDS)
        self._ask("POST", f"{_path(job)}:{verb}", json=options)

    def log(self, job: str) -> str:
        """Return a job's log."""
        return self._ask("GET", f"{_path(job)}/logs").text

    def metrics(self, job: str, since: int) -> list[dict[str, Any]]:
        """Return a job's metrics over time."""
        return self._ask("GET", f"{_path(job)}/metrics", params={"since": since}).json()["rows"]

    def fetch(self, job: str, out: Path) -> Path:
        """Bring a finished job's result to ``out/ID`` and check it against the hashes that it was sealed with.

        Raises:
            ServiceError: If a file is not what was sealed.
        """
        target = out / job
        if (target / "result.json").is_file():
            return target
        partial = out / f".{job}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        for item in self._ask("GET", f"{_path(job)}/artifacts").json()["files"]:
            name = _safe_name(item["name"])
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            self._download(f"{_path(job)}/artifacts/{name}", partial / name)
        _check_result(partial, job)
        partial.rename(target)
        return target

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _upload(self, path: Path) -> str:
        """Bring a file to the service unless it is there, going on where a broken connection ended."""
        sha256 = hash_file(path)
        size = path.stat().st_size

        def send() -> None:
            found = Upload.model_validate(_raise(self._http.get(f"v1/uploads/{sha256}")).json())
            if found.is_complete:
                return
            if found.limit is not None and size > found.limit:
                limit = bytes_text(found.limit)
                raise RefusedError(f"{path} has {bytes_text(size)}; at most {limit} are accepted (max_archive_bytes)")
            offset = found.offset if found.offset < size else 0
            headers = {"Content-Length": str(size - offset), "Content-Type": "application/octet-stream"}
            if size:
                headers["Content-Range"] = f"bytes {offset}-{size - 1}/{size}"
            _raise(self._http.put(f"v1/uploads/{sha256}", headers=headers, content=_pieces(path, offset)))

        self._patiently(send)
        return sha256

    def _download(self, url: str, target: Path) -> None:
        def receive() -> None:
            offset = target.stat().st_size if target.exists() else 0
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            with self._http.stream("GET", url, headers=headers) as answer:
                if offset and answer.status_code == 416:
                    return
                if answer.is_error:
                    answer.read()
                _raise(answer)
                with target.open("ab" if answer.status_code == 206 else "wb") as file:
                    for piece in answer.iter_bytes(_PIECE_BYTES):
                        file.write(piece)

        self._patiently(receive)

    def _ask(self, method: str, url: str, **content: Any) -> httpx.Response:
        # Every request may be repeated: a submission is known by its content, and a verb that is done succeeds again.
        return self._patiently(lambda: _raise(self._http.request(method, url, **content)))

    def _patiently(self, request: Callable[[], T]) -> T:
        """Make a request, and again if the connection breaks or the service asks to come later."""
        wait = _FIRST_WAIT_SECONDS
        for _ in range(_TRIES - 1):
            try:
                return request()
            except (httpx.TransportError, _LaterError):
                time.sleep(wait)
                wait *= 2
        try:
            return request()
        except httpx.TransportError as error:
            raise ServiceError(f"{self._url} cannot be reached: {error or type(error).__name__}; is it running?") from error


class _LaterError(ServiceError):
    """The service cannot answer just now."""


def _raise(answer: httpx.Response) -> httpx.Response:
    """Return an answer, or raise what the service says is wrong."""
    if answer.is_success:
        return answer
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or "code" not in body:
        raise ServiceError(f"{answer.request.url}: expected an answer of a unified service, got status {answer.status_code}")
    if body.get("problems") and body["code"] == "invalid-submission":
        raise InvalidSubmission(Problem(**problem) for problem in body["problems"])
    if answer.status_code == 503 or body["code"] in {"upload-busy", "upload-offset"}:
        raise _LaterError(body["detail"])
    raise _ERRORS.get(body["code"], ServiceError)(body["detail"])


def _describe(folder: Path) -> tuple[dict[str, Any], Mapping[str, Path]]:
    """Return ``job.json`` and the files it needs by name, those from outside its folder under names inside.

    Raises:
        InvalidSubmission: With everything that is wrong with ``job.json``.
    """
    fields = read_fields(folder, folder.name)
    spec = parse_fields(fields, folder.name)
    is_sweep = spec.sweep is not None
    own = list_folder(folder, folder.name, 0).files
    files = {} if is_sweep else {name: folder / name for name in own if name != "job.json"}
    resolve = submitter_sources(folder)
    names: dict[str, str] = {}
    for field, given in named_sources(spec).items():
        source = resolve(field, given)
        if source is None and is_sweep:
            source = folder / given  # shared by its members
        if source is None or not source.exists():  # what is not here, the service may have: '../data/…'
            continue
        names[field] = _name_outside(source)
        if source.is_dir():
            inside = (path for path in source.rglob("*") if path.is_file())
            files |= {f"{names[field]}/{path.relative_to(source).as_posix()}": path for path in inside}
        else:
            files[names[field]] = source
    return renamed(fields, names), files


def _name_outside(source: Path) -> str:
    """Return a name inside the job folder; below ``shared/`` the service keeps equal files once."""
    digest = hashlib.sha256(str(source).encode()).hexdigest() if source.is_dir() else hash_file(source)
    return f"shared/{digest[:10]}/{re.sub(r'[^A-Za-z0-9._-]', '_', source.name)[:100]}"


def _path(job: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+", job):
        raise UnknownJobError(f"there is no job {job!r}: an id has letters, digits, '.', '_' and '-'")
    return f"v1/jobs/{job}"


def _safe_name(name: str) -> str:
    """Return a file's name that came from the service, if it leads into the folder it is meant for."""
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise ServiceError(f"the service named a file {name!r}, which leads out of the result's folder")
    return name


def _check_result(folder: Path, job: str) -> None:
    sealed = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    for name, sha256 in sealed.get("sha256", {}).items():
        if hash_file(folder / _safe_name(name)) != sha256:
            raise ServiceError(f"job {job}: {name} did not come as it was sealed; fetch it again")


def _pieces(path: Path, offset: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        while piece := file.read(_PIECE_BYTES):
            yield piece
