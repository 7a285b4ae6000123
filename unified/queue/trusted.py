"""Whose code a queue runs: the ``[trusted]`` table of its settings. Nothing here needs cryptography."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from unified.errors import Problem

SIGNATURE = "signature.json"  #: of a job folder
KEY_PREFIX = "ed25519:"
_KEY_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A public key and whose it is."""

    user: str
    key: bytes

    @property
    def key_id(self) -> str:
        """What signatures call the key."""
        return key_id(self.key)

    @property
    def line(self) -> str:
        """The key as it stands in the settings."""
        return f"{KEY_PREFIX}{base64.b64encode(self.key).decode()} {self.user}"


def key_id(key: bytes) -> str:
    """Return the SHA-256 of a public key, in hexadecimal digits: what signatures call it."""
    return hashlib.sha256(key).hexdigest()


def parse_signer(line: str) -> Signer:
    """Read a line such as ``ed25519:BASE64 alice``.

    Raises:
        ValueError: If it is none.
    """
    encoded, _, user = line.strip().partition(" ")
    user = user.strip()
    try:
        key = base64.b64decode(encoded.removeprefix(KEY_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not encoded.startswith(KEY_PREFIX) or len(key) != _KEY_BYTES:
        raise ValueError(f"expected a key as 'unified keygen' prints it, {KEY_PREFIX}BASE64 USER")
    if not 0 < len(user) <= 100 or not user.isprintable():
        raise ValueError("expected the name of the key's user behind it, 1 to 100 printable characters")
    return Signer(user=user, key=key)


def sign_problem(job: str, expected: str, given: str, remedy: str = "sign the job again with 'unified sign'") -> Problem:
    """Return a problem of a signature."""
    return Problem(code="E-SIGN", job=job, field=SIGNATURE, expected=expected, given=given, remedy=remedy)


def _queue_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("expected 1 to 100 letters, digits, '.', '_' or '-', of which the first is a letter or a digit")
    return name


def _module_name(name: str) -> str:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError("expected the dotted name of a module, such as mylab.models")
    return name


def _key_line(line: str) -> str:
    parse_signer(line)
    return line


class Trusted(BaseModel):
    """Who may hand in models that run code when they are loaded, and which modules their pickles may name.

    Attributes:
        name: What the queue is called in signatures: one that is for another queue is refused.
        modules: A pickle may name what is in these modules and in those below them, beside what PyTorch itself needs.
        keys: Public keys, each with its user: ``ed25519:BASE64 alice``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(_queue_name)]
    modules: tuple[Annotated[str, AfterValidator(_module_name)], ...] = ()
    keys: Annotated[tuple[Annotated[str, AfterValidator(_key_line)], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _keys_once(self) -> Trusted:
        signers = [parse_signer(line) for line in self.keys]
        if len({signer.key for signer in signers}) < len(signers):
            raise ValueError("a key is listed twice; list each once, with its one user")
        return self

    @property
    def signers(self) -> dict[str, Signer]:
        """The signers, by what signatures call their keys."""
        return {signer.key_id: signer for signer in map(parse_signer, self.keys)}
