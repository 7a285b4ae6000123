"""System calls that Python has no function for, through libc's ``syscall``."""

from __future__ import annotations

import ctypes
import os
import sys

_NO_NEW_PRIVILEGES = 38  #: PR_SET_NO_NEW_PRIVS


def call(number: int, *arguments: int | ctypes.Array[ctypes.c_char] | None) -> int:
    """Make a system call; buffers are passed by their address.

    Raises:
        OSError: As the kernel says.
    """
    result = _libc().syscall(ctypes.c_long(number), *map(_as_word, arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def give_up_privileges() -> None:
    """Make it impossible to gain rights by running a program; without it the kernel lets only root confine itself.

    Raises:
        OSError: If the kernel cannot.
    """
    zero = ctypes.c_ulong(0)
    if _libc().prctl(_NO_NEW_PRIVILEGES, ctypes.c_ulong(1), zero, zero, zero) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def is_linux() -> bool:
    """Whether this is a system of the kind that all this is about."""
    return sys.platform == "linux"


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _as_word(value: int | ctypes.Array[ctypes.c_char] | None) -> ctypes.c_void_p | ctypes.c_long | None:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, int):
        return ctypes.c_long(value)
    return ctypes.cast(value, ctypes.c_void_p)
