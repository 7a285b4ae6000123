"""Checkpoints of one member: written atomically, checksummed, two generations kept.

A checkpoint is ``step-N.pt`` (tensors and plain values only, read with ``weights_only=True``) beside ``step-N.json``, which
is written last and holds its SHA-256 and the job's fingerprint. A file without its JSON does not count.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import torch

from unified.errors import CheckpointError
from unified.member import Member

NUM_GENERATIONS = 2


def save_checkpoint(member: Member, folder: Path) -> int:
    """Write the member's state under ``folder`` and return the step at which it stands.

    The previous generation stays until the new one is complete on disk.
    """
    step = member.progress.step
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(member.state_dict(), buffer)
    content = buffer.getbuffer()
    seal = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "fingerprint": member.submission.fingerprint(),
        "step": step,
    }
    write_atomically(folder / f"step-{step:012d}.pt", content)
    write_atomically(folder / f"step-{step:012d}.json", json.dumps(seal).encode())
    _forget_old(folder)
    return step


def restore_checkpoint(member: Member, folder: Path) -> int:
    """Put the newest sound checkpoint under ``folder`` into ``member`` and return its step, 0 if there is none at all.

    Raises:
        CheckpointError: If there are checkpoints but none is sound, or they are of another job.
    """
    seals = sorted(folder.glob("step-*.json"), reverse=True)
    for seal_path in seals:
        state = _read_sound(seal_path, member.submission.fingerprint())
        if state is not None:
            member.load_state_dict(state)
            return member.progress.step
    if seals:
        raise CheckpointError(
            f"job {member.name!r}: none of the {len(seals)} checkpoints in {folder} is sound; "
            "delete that folder to start the job from its beginning"
        )
    return 0


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write ``content`` so that after a crash ``path`` holds either all of it or what was there before."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _read_sound(seal_path: Path, wanted: str) -> dict[str, Any] | None:
    try:
        seal = json.loads(seal_path.read_bytes())
        content = seal_path.with_suffix(".pt").read_bytes()
    except (OSError, ValueError):
        return None
    if seal.get("fingerprint") != wanted:
        raise CheckpointError(
            f"{seal_path} is a checkpoint of a job with other hyper-parameters, model or data; "
            "choose another --out folder, or delete it to start from the beginning"
        )
    if hashlib.sha256(content).hexdigest() != seal.get("sha256"):
        return None
    return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")


def _forget_old(folder: Path) -> None:
    for seal in sorted(folder.glob("step-*.json"))[:-NUM_GENERATIONS]:
        seal.unlink(missing_ok=True)
        seal.with_suffix(".pt").unlink(missing_ok=True)
