"""Numbers of the system calls that are refused, on the machines that the ring knows: x86-64 and 64-bit ARM."""

from __future__ import annotations

import platform
import sys

#: What nobody needs who reads a job or trains it: name, number on x86-64, number on 64-bit ARM (None: it has no such call).
_REFUSED: tuple[tuple[str, int, int | None], ...] = (
    # running programs
    ("execve", 59, 221),
    ("execveat", 322, 281),
    # other processes: their memory, descriptors and signals (kill and the like are in seccomp.py, as they may name oneself)
    ("ptrace", 101, 117),
    ("process_vm_readv", 310, 270),
    ("process_vm_writev", 311, 271),
    ("process_madvise", 440, 440),
    ("process_mrelease", 448, 448),
    ("kcmp", 312, 272),
    ("pidfd_getfd", 438, 438),
    ("pidfd_send_signal", 424, 424),
    ("tkill", 200, 130),
    # what belongs to the user or the host rather than to a process
    ("keyctl", 250, 219),
    ("add_key", 248, 217),
    ("request_key", 249, 218),
    ("shmget", 29, 194),
    ("shmat", 30, 196),
    ("shmctl", 31, 195),
    ("msgget", 68, 186),
    ("msgsnd", 69, 189),
    ("msgrcv", 70, 188),
    ("msgctl", 71, 187),
    ("semget", 64, 190),
    ("semop", 65, 193),
    ("semtimedop", 220, 192),
    ("semctl", 66, 191),
    ("mq_open", 240, 180),
    ("mq_unlink", 241, 181),
    # modes, owners, attributes and times of files, in which Landlock has no say
    ("chmod", 90, None),
    ("fchmod", 91, 52),
    ("fchmodat", 268, 53),
    ("fchmodat2", 452, 452),
    ("chown", 92, None),
    ("fchown", 93, 55),
    ("lchown", 94, None),
    ("fchownat", 260, 54),
    ("setxattr", 188, 5),
    ("lsetxattr", 189, 6),
    ("fsetxattr", 190, 7),
    ("setxattrat", 463, 463),
    ("removexattr", 197, 14),
    ("lremovexattr", 198, 15),
    ("fremovexattr", 199, 16),
    ("removexattrat", 466, 466),
    ("file_setattr", 469, 469),
    ("utime", 132, None),
    ("utimes", 235, None),
    ("futimesat", 261, None),
    ("utimensat", 280, 88),
    # other views of the file system, and files by handle
    ("mount", 165, 40),
    ("umount2", 166, 39),
    ("pivot_root", 155, 41),
    ("chroot", 161, 51),
    ("open_tree", 428, 428),
    ("open_tree_attr", 467, 467),
    ("move_mount", 429, 429),
    ("fsopen", 430, 430),
    ("fsconfig", 431, 431),
    ("fsmount", 432, 432),
    ("fspick", 433, 433),
    ("mount_setattr", 442, 442),
    ("open_by_handle_at", 304, 265),
    ("fanotify_init", 300, 262),
    ("unshare", 272, 97),
    ("setns", 308, 268),
    # parts of the kernel that were often the way out of a ring
    ("bpf", 321, 280),
    ("perf_event_open", 298, 241),
    ("userfaultfd", 323, 282),
    ("io_uring_setup", 425, 425),
    ("io_uring_enter", 426, 426),
    ("io_uring_register", 427, 427),
    # the host itself, where the service runs as root
    ("init_module", 175, 105),
    ("finit_module", 313, 273),
    ("delete_module", 176, 106),
    ("kexec_load", 246, 104),
    ("kexec_file_load", 320, 294),
    ("reboot", 169, 142),
    ("swapon", 167, 224),
    ("swapoff", 168, 225),
    ("acct", 163, 89),
    ("quotactl", 179, 60),
    ("quotactl_fd", 443, 443),
    ("settimeofday", 164, 170),
    ("clock_settime", 227, 112),
    ("clock_adjtime", 305, 266),
    ("adjtimex", 159, 171),
    ("sethostname", 170, 161),
    ("setdomainname", 171, 162),
    ("syslog", 103, 116),
    ("iopl", 172, None),
    ("ioperm", 173, None),
)

#: Calls on sockets; those that a process was born with can still be read and written.
_SOCKETS: tuple[tuple[str, int, int | None], ...] = (
    ("socket", 41, 198),
    ("connect", 42, 203),
    ("bind", 49, 200),
    ("listen", 50, 201),
    ("accept", 43, 202),
    ("accept4", 288, 242),
)

#: Calls that are refused for some arguments only.
_CONDITIONAL: tuple[tuple[str, int, int], ...] = (
    ("clone", 56, 220),
    ("clone3", 435, 435),
    ("ioctl", 16, 29),
    ("kill", 62, 129),
    ("prlimit64", 302, 261),
    ("rt_sigqueueinfo", 129, 138),
    ("rt_tgsigqueueinfo", 297, 240),
    ("seccomp", 317, 277),
    ("socketpair", 53, 199),
    ("tgkill", 234, 131),
)

#: Its place in the tables above, and what the kernel calls the machine in a filter (AUDIT_ARCH_…).
_MACHINES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}


def is_known_machine() -> bool:
    """Whether the tables hold for this machine: a 64-bit Python on x86-64 or ARM."""
    return platform.machine() in _MACHINES and sys.maxsize > 1 << 32


def architecture() -> int:
    """Return what the kernel calls this machine in a filter."""
    return _MACHINES[platform.machine()][1]


def refused(*, with_sockets: bool) -> list[int]:
    """Return the numbers of the calls that are always refused here."""
    column = _MACHINES[platform.machine()][0]
    rows = [*_REFUSED, *(_SOCKETS if with_sockets else ())]
    return [number for row in rows if isinstance(number := row[column], int)]


def number_of(name: str) -> int:
    """Return the number of a call that is refused for some arguments only."""
    column = _MACHINES[platform.machine()][0]
    return next(number for row in _CONDITIONAL if row[0] == name and isinstance(number := row[column], int))
