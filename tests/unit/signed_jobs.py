"""Keys, queues that trust them, and signed job folders."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.unit.job_folders import AT_ONCE, make_job
from unified.queue.config import ServiceConfig
from unified.queue.signatures import Signature
from unified.queue.signing import Terms, sign_folder
from unified.queue.trusted import Trusted

QUEUE = "lab"
USER = "ann"
ANNS = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
BOBS = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
NOBODYS = Ed25519PrivateKey.from_private_bytes(bytes(range(2, 34)))


def key_line(key: Ed25519PrivateKey, user: str) -> str:
    """Return a key as it stands in the settings."""
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return f"ed25519:{base64.b64encode(raw).decode()} {user}"


def trusted_table(*modules: str, name: str = QUEUE) -> dict[str, Any]:
    """Return the table of config.toml that lists the keys of two users."""
    return {"name": name, "modules": list(modules), "keys": [key_line(ANNS, USER), key_line(BOBS, "bob")]}


def trusting(*modules: str, name: str = QUEUE) -> ServiceConfig:
    """Return the settings of a queue that lists the keys of two users."""
    return AT_ONCE.model_copy(update={"trusted": Trusted(**trusted_table(*modules, name=name))})


def sign_for(folder: Path, key: Ed25519PrivateKey = ANNS, *, queue: str = QUEUE, seconds: float = 3600) -> Signature:
    """Sign a job folder."""
    return sign_folder(folder, key, Terms(queue=queue, expires=time.time() + seconds))


def signed_job(folder: Path, model: bytes | None = None, **fields: Any) -> Path:
    """Write a job folder of Ann's, and sign it with her key."""
    make_job(folder, **({"user": USER} | fields))
    if model is not None:
        (folder / "model.umodel").write_bytes(model)
    sign_for(folder)
    return folder
