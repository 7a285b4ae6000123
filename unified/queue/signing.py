"""Make keys, and sign job folders with them: the signer's side, on any machine."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from unified.errors import InvalidSubmission, Problem, UnifiedError
from unified.queue.files import hash_file, write_durably
from unified.queue.job_folder import link_problems, list_folder, named_sources, parse_fields, read_fields
from unified.queue.signatures import Claims, Signature, sign, signed_content, source_hashes
from unified.queue.trusted import SIGNATURE, Signer, key_id

_MAX_NAME = 89  #: of a job, so that its id with a mark of its own has at most 100 characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a job is signed for: the queue's name, and until when (seconds since 1970) it may be handed in."""

    queue: str
    expires: float


def make_key(path: Path, user: str) -> Signer:
    """Write a new private key, for its owner's eyes only, and beside it (``.pub``) its public half; return the latter.

    Raises:
        UnifiedError: If a file is there already: a key that is overwritten is lost.
    """
    public_path = path.with_name(f"{path.name}.pub")
    for there in (path, public_path):
        if os.path.lexists(there):
            raise UnifiedError(f"{there} exists; a key is never overwritten: choose another --out, or remove it yourself")
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(private)
    signer = Signer(user=user, key=_public_bytes(key))
    public_path.write_text(f"{signer.line}\n", encoding="utf-8")
    return signer


def read_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        UnifiedError: If it is none that ``unified keygen`` writes.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UnifiedError(f"{path} is no private key; 'unified keygen --out FILE --user NAME' makes one") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UnifiedError(f"{path} is a key of another kind than Ed25519; 'unified keygen' makes one")
    return key


def sign_folder(folder: Path, key: Ed25519PrivateKey, terms: Terms) -> Signature:
    """Sign a job folder, and write ``signature.json`` into it.

    The job's id is that of ``job.json``, else a new one, under which the queue will take it in. Each signature is for one job.

    Raises:
        InvalidSubmission: If it is no job folder, is a sweep, or names what is not there.
    """
    job = folder.resolve().name
    try:
        fields = read_fields(folder, job)
        spec = parse_fields(fields, job)
        if spec.sweep is not None:
            raise InvalidSubmission(
                [_problem("E-SWEEP", spec.name, "sweep", "one job", "a sweep", "sign its members one by one")]
            )
        named = named_sources(spec)
        sources = source_hashes(named, {name: digest for path in named.values() for name, digest in _hashes(folder, path)})
    except OSError as error:
        given = f"{error.strerror or 'nothing there'}: {error.filename or error}"
        raise InvalidSubmission(
            [_problem("E-FILE", job, "folder", "a job folder, and all files that it names", given, "correct the path")]
        ) from error
    claims = Claims(
        key=key_id(_public_bytes(key)),
        queue=terms.queue,
        job=spec.id or f"{spec.name[:_MAX_NAME]}-{secrets.token_hex(5)}",
        expires=int(terms.expires),
        model=sources["model"],
        content=signed_content(fields, sources),
    )
    signature = sign(claims, key)
    write_durably(folder / SIGNATURE, signature.to_json())
    return signature


def expiry(seconds: float) -> float:
    """Return when something expires that lasts ``seconds`` from now."""
    return time.time() + seconds


def _hashes(folder: Path, given: str) -> Iterator[tuple[str, str]]:
    """Yield path and SHA-256 of each file that a path in ``job.json`` names, as the queue will see them."""
    path, name = (folder / given).resolve(strict=True), os.path.normpath(given)
    if not path.is_dir():
        yield name, hash_file(path)
        return
    contents = list_folder(path, given, 0)
    astray = {link for link in contents.links if not (path / link).is_file()}
    if contents.problems or astray:
        raise InvalidSubmission([*contents.problems, *link_problems(given, astray)])
    for file in (*contents.files, *contents.links):
        yield f"{name}/{file}", hash_file((path / file).resolve())


def _public_bytes(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _problem(code: str, job: str, field: str, expected: str, given: str, remedy: str) -> Problem:
    return Problem(code=code, job=job, field=field, expected=expected, given=given, remedy=remedy)
