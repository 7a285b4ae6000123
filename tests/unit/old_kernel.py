"""A system without a part of the ring, made from one that has it: the kernel is told to know nothing of it. Free of torch."""

from __future__ import annotations

import errno

from unified.sandbox import kernel, seccomp


def refuse_landlock() -> None:
    """Make this process, and all that it starts, one whose kernel knows no Landlock."""
    kernel.give_up_privileges()
    seccomp.install(seccomp.refusals([444, 445, 446], errno.ENOSYS))
