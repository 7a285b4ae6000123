"""Which system calls a process may make: a seccomp filter, in the kernel's classic BPF. See ``man 2 seccomp``.

A list of what is refused, not of what is allowed: what torch, CUDA and libc call changes with every version, while what reaches
beyond a process is well known. Refused calls fail with EPERM, so a job that tries fails alone, with that reason.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Sequence

from unified.sandbox.kernel import call, give_up_privileges, is_linux
from unified.sandbox.syscalls import architecture, is_known_machine, number_of, refused

_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16  # where they are in what a filter sees
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_OTHER_ABI = 0x40000000  #: from here on, x86-64's calls with 32-bit pointers

_SET_FILTER, _FOR_ALL_THREADS = 1, 1
_TELL_ACTION = 2
_NEW_NAMESPACES = 0x7E020000  #: CLONE_NEWNS, -CGROUP, -UTS, -IPC, -USER, -PID, -NET
_TYPE_INTO_TERMINAL = (0x5412, 0x541C)  #: TIOCSTI, TIOCLINUX
_AF_UNIX = 1
_WITH_ADDRESSES = 0b10  #: the bit of SOCK_DGRAM and SOCK_RAW, whose every message may go to another address

Instruction = tuple[int, int, int, int]  #: code, jump if true, jump if false, operand


def check() -> None:
    """See whether the kernel takes filters from us.

    Raises:
        OSError: If it does not.
    """
    if not is_linux():
        raise OSError("only Linux has it")
    if not is_known_machine():
        raise OSError("it is written for x86-64 and 64-bit ARM only")
    action = struct.pack("=I", _ERROR)
    call(number_of("seccomp"), _TELL_ACTION, 0, ctypes.create_string_buffer(action, 4))


def restrict(*, network: bool) -> None:
    """Refuse system calls to this process, all its threads and all that it starts, for ever.

    Args:
        network: Sockets are allowed.

    Raises:
        OSError: If the kernel refuses.
    """
    give_up_privileges()
    install([*refusals(refused(with_sockets=not network)), *_own_process_only(), *([] if network else _pairs_only())])


def install(rules: Sequence[Instruction]) -> None:
    """Put a filter in place: ``rules`` find the call's number loaded; what none of them refuses is allowed.

    Raises:
        OSError: If the kernel refuses.
    """
    guard = [
        (_LOAD, 0, 0, _MACHINE),
        (_IF_EQUAL, 1, 0, architecture()),
        _refuse(errno.EPERM),
        (_LOAD, 0, 0, _NUMBER),
        (_IF_AT_LEAST, 0, 1, _OTHER_ABI),
        _refuse(errno.EPERM),
    ]
    program = [*guard, *rules, (_RETURN, 0, 0, _ALLOW)]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    call(number_of("seccomp"), _SET_FILTER, _FOR_ALL_THREADS, ctypes.create_string_buffer(header, len(header)))


def refusals(numbers: Iterable[int], code: int = errno.EPERM) -> list[Instruction]:
    """Return rules that let these calls fail with ``code``, whatever their arguments."""
    return [instruction for number in numbers for instruction in ((_IF_EQUAL, 0, 1, number), _refuse(code))]


def _own_process_only() -> list[Instruction]:
    """Allow signals and limits for this process alone, and new threads and processes in its own namespaces alone."""
    pid = os.getpid()
    signals = ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
    return [
        *(rule for name in signals for rule in _when(number_of(name), [_one_of(0, pid)])),
        *_when(number_of("prlimit64"), [_one_of(0, 0, pid)]),
        *_when(number_of("clone"), [_without(0, _NEW_NAMESPACES)]),
        # Its flags are in memory, which no filter can look into; for want of it libc takes clone.
        *refusals([number_of("clone3")], errno.ENOSYS),
        *_when(number_of("ioctl"), [_none_of(1, *_TYPE_INTO_TERMINAL)]),
    ]


def _pairs_only() -> list[Instruction]:
    """Allow pairs of sockets that are connected to each other for good, as pipes are; event loops want them."""
    return _when(number_of("socketpair"), [_one_of(0, _AF_UNIX), _without(1, _WITH_ADDRESSES)])


def _when(number: int, conditions: Sequence[Sequence[Instruction]]) -> list[Instruction]:
    """Allow a call if all conditions hold, each of which refuses or goes on."""
    block = [instruction for condition in conditions for instruction in condition]
    return [(_IF_EQUAL, 0, len(block) + 1, number), *block, (_RETURN, 0, 0, _ALLOW)]


def _one_of(argument: int, *values: int) -> list[Instruction]:
    """Refuse unless an argument, of which an ``int``'s 32 bits count, has one of these values."""
    count = len(values)
    tests = [(_IF_EQUAL, count - position, 0, value) for position, value in enumerate(values)]
    return [_load(argument), *tests, _refuse(errno.EPERM)]


def _none_of(argument: int, *values: int) -> list[Instruction]:
    return [_load(argument), *refusals(values)]


def _without(argument: int, bits: int) -> list[Instruction]:
    return [_load(argument), (_IF_BITS, 0, 1, bits), _refuse(errno.EPERM)]


def _load(argument: int) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * argument)  # the low half: both machines are little-endian


def _refuse(code: int) -> Instruction:
    return (_RETURN, 0, 0, _ERROR | code)
