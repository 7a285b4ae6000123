"""Who asks over HTTP, and what they may: hashed tokens in a file or, without one, people of this machine alone.

python -m unified.service.http_auth new USER SCOPE…      prints a new token, and the line for the token file
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from unified.errors import UnifiedError

_LINE = re.compile(r"sha256:(?P<digest>[0-9a-f]{64})\s+(?P<scopes>[a-z,]+)\s+(?P<user>\S.*)")
_PREFIX = "unified_"  #: so that a token is recognised where it does not belong, as in a repository


class TokenFileError(UnifiedError):
    """The token file cannot be used; the message names the line."""


class Scope(StrEnum):
    """What a token allows."""

    READ = "read"  #: see one's own jobs
    SUBMIT = "submit"  #: hand in jobs, and pause, resume, cancel, checkpoint and requeue one's own
    ADMIN = "admin"  #: see and touch everybody's jobs
    TRUST = "trust"  #: hand in models that run code when they are loaded, where the queue's settings allow that


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who asks.

    Attributes:
        user: Whose jobs they are that a token hands in; None where nobody needs a token.
        scopes: What it allows; an operator may read and submit.
    """

    user: str | None
    scopes: frozenset[Scope]

    @property
    def is_operator(self) -> bool:
        """Whether all jobs are seen and may be touched."""
        return Scope.ADMIN in self.scopes

    @property
    def sees(self) -> str | None:
        """The user whose jobs alone are seen; None: everybody's."""
        return None if self.is_operator else self.user

    @property
    def by(self) -> str:
        """Who did it, for the record."""
        return self.user or "http"

    def may(self, scope: Scope) -> bool:
        """Return whether this is allowed."""
        implied = self.is_operator and scope in {Scope.READ, Scope.SUBMIT}
        return implied or scope in self.scopes


#: Who everybody is that reaches a service without tokens, which listens to this machine alone.
LOCAL = Identity(user=None, scopes=frozenset(Scope))


class Tokens:
    """The tokens of a file, which is read anew when it changes: a removed line ends a token at once.

    A line is ``sha256:HASH SCOPE,SCOPE USER``; empty lines and those that begin with ``#`` say nothing.

    Args:
        path: The file.

    Raises:
        TokenFileError: If it is not there, can be written by anybody, has no tokens or a line that is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp, self._identities = _read(path)

    def identify(self, token: str) -> Identity | None:
        """Return whose token it is, None if it is nobody's; takes as long for one as for the other.

        Raises:
            TokenFileError: If the file has changed and cannot be used any more: then nobody is let in.
        """
        if _stamp(self._path) != self._stamp:
            self._stamp, self._identities = _read(self._path)
        digest = _digest(token)
        found = None
        for known, identity in self._identities:
            if hmac.compare_digest(known, digest):
                found = identity
        return found


def make_token(user: str, scopes: Sequence[str]) -> tuple[str, str]:
    """Return a new token, and the line of the token file that lets it in.

    Raises:
        TokenFileError: If a scope or the user's name cannot be used.
    """
    token = _PREFIX + secrets.token_urlsafe(32)
    line = f"sha256:{_digest(token)} {','.join(scopes)} {user}"
    _parse(line, "the new line")
    return token, line


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a new token and its line; return the exit code."""
    match list(sys.argv[1:] if arguments is None else arguments):
        case ["new", user, *scopes] if scopes:
            try:
                token, line = make_token(user, scopes)
            except TokenFileError as error:
                sys.stderr.write(f"unified: {error}\n")
                return 1
            sys.stdout.write(f"token, shown this once:     {token}\nadd to the token file:      {line}\n")
            return 0
    sys.stderr.write(f"usage: python -m unified.service.http_auth new USER SCOPE…   scopes: {', '.join(Scope)}\n")
    return 2


def _read(path: Path) -> tuple[tuple[int, int, int], list[tuple[str, Identity]]]:
    try:
        stamp = _stamp(path)
        if path.stat().st_mode & stat.S_IWOTH:
            raise TokenFileError(f"token file {path}: anybody may write it; chmod o-w it")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TokenFileError(f"token file {path} cannot be read: {error}") from error
    found = [
        _parse(line.strip(), f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not found:
        raise TokenFileError(f"token file {path} has no tokens; make one: python -m unified.service.http_auth new USER SCOPE…")
    return stamp, found


def _parse(line: str, where: str) -> tuple[str, Identity]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise TokenFileError(f"token file {where}: expected 'sha256:HASH SCOPE,SCOPE USER'; make such a line with 'new'")
    try:
        scopes = frozenset(Scope(scope) for scope in match["scopes"].split(","))
    except ValueError as error:
        raise TokenFileError(f"token file {where}: {error}; scopes are {', '.join(Scope)}") from None
    user = match["user"]
    if len(user) > 100 or not user.isprintable():
        raise TokenFileError(f"token file {where}: expected a user's name of at most 100 printable characters")
    return match["digest"], Identity(user=user, scopes=scopes)


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise TokenFileError(f"token file {path} cannot be read: {error.strerror}") from error
    return status.st_mtime_ns, status.st_size, status.st_ino


def _digest(token: str) -> str:
    # A plain hash is enough: a token is 256 random bits, which nobody guesses, unlike a password.
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
