"""Draw the ring around the calling process, or say what is missing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from unified.errors import SandboxError
from unified.sandbox import landlock, seccomp
from unified.sandbox.folders import device_paths, system_paths
from unified.sandbox.records import Confinement, Mechanism, Mode

_FILES = "the files of others"
_CALLS = "the network, programs, signals and other processes"
_TASKS = Path("/proc/self/task")


def available() -> tuple[Mechanism, ...]:
    """Return the parts of the ring, each with what this system offers of it."""
    return _landlock(), _seccomp()


def check(mode: Mode) -> None:
    """See whether what is asked for can be had.

    Raises:
        SandboxError: If the mode is ``"required"`` and anything is missing.
    """
    missing = [part for part in available() if not part.is_available]
    if mode == "required" and missing:
        raise SandboxError(_complaint(missing))


def confine(confinement: Confinement) -> tuple[Mechanism, ...]:
    """Confine this process, and all that it starts, for ever; return what is active.

    To be called while it has a single thread: Landlock holds for the thread that asks, and for those that it starts.

    Raises:
        SandboxError: If all was required and something is missing; the process must end then.
    """
    if confinement.mode == "off":
        return ()
    assert not _TASKS.is_dir() or len(list(_TASKS.iterdir())) == 1, "other threads would stay outside"
    for folder in confinement.writable:
        folder.mkdir(parents=True, exist_ok=True)  # what is not there cannot be granted
    if confinement.writable:
        tempfile.tempdir = os.environ["TMPDIR"] = str(confinement.writable[0])
    parts = [_restrict(part, confinement) if part.is_available else part for part in available()]
    missing = [part for part in parts if not part.is_available]
    if confinement.mode == "required" and missing:
        raise SandboxError(_complaint(missing))
    return tuple(part for part in parts if part.is_available)


def describe(parts: tuple[Mechanism, ...]) -> str:
    """Return in words what is guarded and what is not."""
    held = [f"{part.guards} ({part.name}, {part.detail})" for part in parts if part.is_available]
    open_ = [f"{part.guards} ({part.name}: {part.detail})" for part in parts if not part.is_available]
    texts = [("kept from", held), ("not kept from", open_)]
    return "; ".join(f"{words} {' and '.join(found)}" for words, found in texts if found)


def _restrict(part: Mechanism, confinement: Confinement) -> Mechanism:
    try:
        if part.name == "landlock":
            devices = (*device_paths(), *confinement.devices)
            landlock.restrict(confinement, system_paths(), devices)
        else:
            seccomp.restrict(network=confinement.network)
    except OSError as error:
        return Mechanism(name=part.name, guards=part.guards, is_available=False, detail=_reason(error))
    return part


def _landlock() -> Mechanism:
    try:
        version = landlock.version()
    except OSError as error:
        return Mechanism(name="landlock", guards=_FILES, is_available=False, detail=_reason(error))
    is_enough = version >= landlock.LEAST_VERSION
    detail = f"version {version}"
    if not is_enough:
        detail += f", and {landlock.LEAST_VERSION} (Linux 6.2) is needed to keep files from being emptied"
    return Mechanism(name="landlock", guards=_FILES, is_available=is_enough, detail=detail)


def _seccomp() -> Mechanism:
    try:
        seccomp.check()
    except OSError as error:
        return Mechanism(name="seccomp", guards=_CALLS, is_available=False, detail=_reason(error))
    return Mechanism(name="seccomp", guards=_CALLS, is_available=True, detail="a filter")


def _reason(error: OSError) -> str:
    return f"the kernel refuses: {error.strerror}" if error.strerror else str(error)


def _complaint(missing: list[Mechanism]) -> str:
    parts = "; ".join(f"{part.name}, which keeps jobs from {part.guards}: {part.detail}" for part in missing)
    return (
        f"sandbox = 'required', but this system lacks {parts}. Use Linux 6.2 or newer with Landlock switched on, in a "
        "container that allows it, or set sandbox = 'auto' to do without what is missing"
    )
