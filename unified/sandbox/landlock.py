"""Which files a process may open: Linux's Landlock, by its three system calls (the only Python package is a pre-release).

Landlock works on whole folders: who may read a folder may read all below. It has no say in looking a path up, in what ``stat``
tells, or in changing modes, owners and times, which ``seccomp`` refuses. See ``man 7 landlock``.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

from unified.sandbox.kernel import call, give_up_privileges, is_linux
from unified.sandbox.records import Confinement

#: The first version (Linux 6.2) that keeps a process from emptying a file that it may not write to.
LEAST_VERSION = 3

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on all architectures
_TELL_VERSION = 1
_BENEATH_PATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_CHAR, _MAKE_DIR, _MAKE_REG, _MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK, _MAKE_SYM = (1 << bit for bit in range(6, 13))
_REFER, _TRUNCATE, _IOCTL_DEV = (1 << bit for bit in range(13, 16))

_READ = _READ_FILE | _READ_DIR
#: No links, pipes or devices: a process outside the ring that comes upon one would follow it or hang.
_WRITE = _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER | _TRUNCATE
_USE = _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV
_OF_FILES = _EXECUTE | _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV  #: what can be granted for what is no folder

_IOCTL_VERSION = 5  #: the first that knows _IOCTL_DEV
_SCOPE_VERSION = 6  #: the first that keeps signals and abstract sockets inside
_SCOPES = 0b11


def version() -> int:
    """Return the version of the kernel's Landlock (its ABI).

    Raises:
        OSError: If it has none, or it is switched off.
    """
    if not is_linux():
        raise OSError("only Linux has it")
    return call(_CREATE_RULESET, None, 0, _TELL_VERSION)


def restrict(confinement: Confinement, system: Iterable[Path], devices: Iterable[Path]) -> None:
    """Let the calling thread, and all that it starts, open nothing but what is named, for ever.

    Args:
        confinement: What it may open; what is not there is passed over.
        system: What it may read besides.
        devices: All devices that it may use.

    Raises:
        OSError: If the kernel refuses.
    """
    found = version()
    handled = (1 << 16) - 1 if found >= _IOCTL_VERSION else (1 << 15) - 1
    scopes = _SCOPES if found >= _SCOPE_VERSION and not confinement.network else 0
    attributes = struct.pack("=QQQ", handled, 0, scopes)
    size = 24 if found >= _SCOPE_VERSION else 8  # a kernel takes no more than it knows
    ruleset = call(_CREATE_RULESET, ctypes.create_string_buffer(attributes, 24), size, 0)
    try:
        for paths, rights in (
            ([*system, *confinement.readable], _READ),
            (confinement.writable, _WRITE),
            (devices, _USE),
        ):
            for path in paths:
                _allow(ruleset, path, rights & handled)
        give_up_privileges()
        call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there needs no rule
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, descriptor)
        call(_ADD_RULE, ruleset, _BENEATH_PATH, ctypes.create_string_buffer(rule, len(rule)), 0)
    finally:
        os.close(descriptor)
