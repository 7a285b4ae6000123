"""``unified keygen`` and ``unified sign``: what they print."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from unified.queue.signing import Terms, expiry, make_key, read_key, sign_folder
from unified.terminal import line_writer


def keygen(out: Path, user: str) -> int:
    """Make a key, print the line for the settings, and return the exit code."""
    signer = make_key(out, user)
    line_writer(sys.stdout)(signer.line)
    say = line_writer(sys.stderr)
    say(f"unified: {out} is the private key: keep it to yourself; the line, also in {out}.pub, is for the queue's config.toml")
    return 0


def sign(folder: Path, key: Path, queue: str, seconds: float) -> int:
    """Sign a job folder, print the job's id, and return the exit code."""
    claims = sign_folder(folder, read_key(key), Terms(queue=queue, expires=expiry(seconds))).claims
    line_writer(sys.stdout)(claims.job)
    until = datetime.fromtimestamp(claims.expires, UTC).strftime("%Y-%m-%d %H:%M UTC")
    line_writer(sys.stderr)(
        f"unified: {folder} is signed for queue {queue!r} until {until}; change nothing in it, and hand it in"
    )
    return 0
