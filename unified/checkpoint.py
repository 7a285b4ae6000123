"""Checkpoints of one member: written atomically, checksummed, two generations kept.

A checkpoint is ``EPOCH-STEP.pt`` (tensors and plain values only, read with ``weights_only=True``) beside ``EPOCH-STEP.json``,
its seal, which is written last and holds its SHA-256 and the job's fingerprint. A file without its seal does not count. EPOCH
numbers the job's residencies, so that a worker that has lost its job can never overwrite what the next one wrote.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unified.errors import CheckpointError
from unified.member import Member
from unified.queue.faults import reach
from unified.queue.files import write_durably

VERSION = 1
NUM_GENERATIONS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A member's state at a step boundary, serialized in memory; nothing of it is shared with the member."""

    folder: Path
    epoch: int
    step: int
    fingerprint: str
    content: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint on disk: its step, its seal's path, and the hash and size of its state."""

    step: int
    path: Path
    sha256: str
    num_bytes: int


def take_snapshot(member: Member, folder: Path, epoch: int = 0) -> Snapshot:
    """Serialize the member's state into memory; what is left to do, any thread may."""
    buffer = io.BytesIO()
    torch.save(member.state_dict(), buffer)
    return Snapshot(
        folder=folder,
        epoch=epoch,
        step=member.progress.step,
        fingerprint=member.submission.fingerprint(),
        content=buffer.getbuffer(),
    )


def write_snapshot(snapshot: Snapshot, *, forgets_old: bool = True) -> Saved:
    """Write a snapshot under its folder.

    Args:
        snapshot: What to write.
        forgets_old: Remove all but the last :data:`NUM_GENERATIONS`, once the new one is complete.
    """
    folder = snapshot.folder
    folder.mkdir(parents=True, exist_ok=True)
    seal = {
        "version": VERSION,
        "sha256": hashlib.sha256(snapshot.content).hexdigest(),
        "fingerprint": snapshot.fingerprint,
        "step": snapshot.step,
    }
    path = folder / f"{snapshot.epoch:06d}-{snapshot.step:012d}.json"
    reach("checkpoint.before-write")
    write_durably(path.with_suffix(".pt"), snapshot.content)
    write_durably(path, json.dumps(seal).encode())
    reach("checkpoint.written")
    if forgets_old:
        for old in seals_in(folder)[NUM_GENERATIONS:]:
            remove_checkpoint(old)
    return Saved(step=snapshot.step, path=path, sha256=str(seal["sha256"]), num_bytes=len(snapshot.content))


def save_checkpoint(member: Member, folder: Path, epoch: int = 0) -> Saved:
    """Write the member's state under ``folder``; the previous generation stays until the new one is complete."""
    return write_snapshot(take_snapshot(member, folder, epoch))


def seals_in(folder: Path) -> list[Path]:
    """Return the seals of the checkpoints in ``folder``, newest first."""
    return sorted(folder.glob("*-*.json"), key=lambda path: (step_of(path), path.name), reverse=True)


def step_of(seal: Path) -> int:
    """Return the step that a seal's name says."""
    return int(seal.stem.rpartition("-")[2])


def remove_checkpoint(seal: Path) -> None:
    """Remove a checkpoint, the seal first: what is left half-way does not count."""
    seal.unlink(missing_ok=True)
    seal.with_suffix(".pt").unlink(missing_ok=True)


def restore_checkpoint(member: Member, folder: Path) -> int:
    """Put the newest sound checkpoint under ``folder`` into ``member`` and return its step, 0 if there is none at all.

    Raises:
        CheckpointError: If there are checkpoints but none is sound, or they are of another job.
    """
    seals = seals_in(folder)
    damaged = restore_first(member, seals)
    if seals and len(damaged) == len(seals):
        raise CheckpointError(
            f"job {member.name!r}: none of the {len(seals)} checkpoints in {folder} is sound; "
            "delete that folder to start the job from its beginning"
        )
    return member.progress.step


def restore_first(member: Member, seals: Sequence[Path]) -> list[Path]:
    """Put the first sound one of these checkpoints into ``member``; return those before it, which are not sound.

    Raises:
        CheckpointError: If one is of another job, or of another version of unified.
    """
    for position, seal_path in enumerate(seals):
        state = _read_sound(seal_path, member.submission.fingerprint())
        if state is not None:
            member.load_state_dict(state)
            return list(seals[:position])
    return list(seals)


def _read_sound(seal_path: Path, wanted: str) -> dict[str, Any] | None:
    try:
        seal = json.loads(seal_path.read_bytes())
        content = seal_path.with_suffix(".pt").read_bytes()
    except (OSError, ValueError):
        return None
    if not isinstance(seal, dict):
        return None
    if seal.get("fingerprint") != wanted:
        raise CheckpointError(
            f"{seal_path} is a checkpoint of a job with other hyper-parameters, model or data; "
            "choose another --out folder, or delete it to start from the beginning"
        )
    if seal.get("version") != VERSION:
        raise CheckpointError(
            f"{seal_path} was written by another version of unified (format {seal.get('version')}, this one reads {VERSION}); "
            "finish the job with that version, or delete the checkpoint to start from the beginning"
        )
    if hashlib.sha256(content).hexdigest() != seal.get("sha256"):
        return None
    return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
