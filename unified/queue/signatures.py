"""The signature of a job folder: what is claimed, by whom, and whether it holds.

A signature is a grant for one job: this content, under this id, on the queue of this name, handed in before it expires.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from unified.errors import InvalidSubmission, Problem
from unified.queue.job_folder import Fields, renamed
from unified.queue.trusted import SIGNATURE, Trusted, sign_problem
from unified.strict_json import parse_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

VERSION = 1

_DOMAIN = b"unified-job-v1\0"  #: so that a signature of something else, by the same key, never counts as one of a job
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")
_MAX_TIME = 2**53

#: Fields of ``job.json`` that are set where a job is handed in. The id is a claim of its own, and the user that of the key.
_SET_AT_THE_DOOR = ("id", "user", "client_token", "priority")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a signature says.

    Attributes:
        key: SHA-256 of the public key, in hexadecimal digits.
        queue: The name of the queue that the job is for.
        job: The job's id there.
        expires: When it can no longer be handed in: seconds since 1970.
        model: SHA-256 of the model's file, or of a folder: see :func:`source_hashes`.
        content: See :func:`signed_content`.
    """

    key: str
    queue: str
    job: str
    expires: int
    model: str
    content: str

    def message(self) -> bytes:
        """Return the bytes that are signed."""
        return _DOMAIN + json.dumps({"version": VERSION} | asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @property
    def digest(self) -> str:
        """SHA-256 of what is signed: which grant this is."""
        return hashlib.sha256(self.message()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Claims, and 64 bytes that only the key's owner can make of them, in hexadecimal digits."""

    claims: Claims
    signature: str

    def to_json(self) -> bytes:
        """Return the content of ``signature.json``."""
        return json.dumps({"version": VERSION} | asdict(self.claims) | {"signature": self.signature}, indent=2).encode()


def sign(claims: Claims, key: Ed25519PrivateKey) -> Signature:
    """Sign claims."""
    return Signature(claims=claims, signature=key.sign(claims.message()).hex())


def parse_signature(content: bytes, job: str) -> Signature:
    """Read ``signature.json``.

    Raises:
        InvalidSubmission: If it is none, or of a version that is not known.
    """
    found = parse_json(content, job=job, name=SIGNATURE)
    if not isinstance(found, dict) or found.get("version") != VERSION or isinstance(found.get("version"), bool):
        given = f"version {found.get('version')!r}"[:100] if isinstance(found, dict) else "something else"
        raise InvalidSubmission([sign_problem(job, f"an object of version {VERSION}", given)])
    kinds = {item.name: int if item.name == "expires" else str for item in fields(Claims)} | {"signature": str}
    wrong = sorted((found.keys() - {"version"}) ^ kinds.keys())
    wrong += [name for name, kind in kinds.items() if name in found and type(found[name]) is not kind]
    if not wrong:
        digits = {"key": _SHA256, "model": _SHA256, "content": _SHA256, "signature": _SIGNATURE}
        wrong = [name for name, pattern in digits.items() if not pattern.fullmatch(found[name])]
        wrong += [] if 0 <= found["expires"] < _MAX_TIME else ["expires"]
    if wrong:
        raise InvalidSubmission(
            [sign_problem(job, "the fields that 'unified sign' writes", f"wrong: {', '.join(wrong)}"[:300])]
        )
    claims = Claims(**{item.name: found[item.name] for item in fields(Claims)})
    return Signature(claims=claims, signature=found["signature"])


def claim_problems(signature: Signature, trusted: Trusted, *, job: str, user: str) -> list[Problem]:
    """Return what is wrong with a signature, its content and its time apart.

    Args:
        signature: The signature.
        trusted: Whose signatures count, and for which queue.
        job: The id under which the job is handed in.
        user: Whose job it is; ``""`` without one.
    """
    claims = signature.claims
    signer = trusted.signers.get(claims.key)
    if signer is None:
        remedy = "sign it with a key whose public half the operator has listed under [trusted]"
        return [sign_problem(job, "a key that this queue lists", f"key {claims.key[:16]}…", remedy)]
    if not _holds(signature, signer.key):
        return [sign_problem(job, f"a signature by the key of {signer.user!r} over what it claims", "one that does not hold")]
    problems = []
    if claims.queue != trusted.name:
        problems.append(sign_problem(job, f"a signature for the queue {trusted.name!r}", f"one for {claims.queue[:100]!r}"))
    if claims.job != job:
        problems.append(sign_problem(job, f"a signature for job {job!r}", f"one for {claims.job[:100]!r}"))
    if user != signer.user:
        remedy = (
            f"a key signs its own user's jobs: say '\"user\": {json.dumps(signer.user)}' in job.json, or hand it in with --user"
        )
        given = f"a job of {user!r}" if user else "a job without a user"
        problems.append(sign_problem(job, f"a job of the key's user {signer.user!r}", given, remedy))
    return problems


def signed_content(job: Fields, sources: Mapping[str, str]) -> str:
    """Return the SHA-256 of what a job trains: the same where it is signed as where it is handed in.

    These are all fields of ``job.json`` but those that are set at the door, with the hash of the content in the place of each
    path. Other files of the folder do not count: no job reads them.

    Args:
        job: The content of ``job.json``.
        sources: Of each field that names a file or folder: its hash.
    """
    content = {field: value for field, value in renamed(job, sources).items() if field not in _SET_AT_THE_DOOR}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def source_hashes(sources: Mapping[str, str], hashes: Mapping[str, str]) -> dict[str, str]:
    """Return the hash of what each field names: a file's SHA-256, or that of the names and hashes in a folder.

    Args:
        sources: The path that each field names.
        hashes: SHA-256 of each file, by its normalized path.
    """
    paths = {field: os.path.normpath(path) for field, path in sources.items()}
    return {field: hashes[path] if path in hashes else _folder_hash(path, hashes) for field, path in paths.items()}


def _folder_hash(folder: str, hashes: Mapping[str, str]) -> str:
    prefix = "" if folder == "." else f"{folder}/"
    listed: list[Any] = sorted(
        (name.removeprefix(prefix), sha256) for name, sha256 in hashes.items() if name.startswith(prefix)
    )
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _holds(signature: Signature, public_key: bytes) -> bool:
    # Only here: most processes that read submissions never see a signature.
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(bytes.fromhex(signature.signature), signature.claims.message())
    except (InvalidSignature, ValueError):
        return False
    return True
