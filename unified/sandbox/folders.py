"""What a confined process may open: what Python and torch need of the system, and what each kind of process needs besides."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from unified.sandbox.records import Confinement, Mode

#: Read by libc, OpenMP, torch and psutil. ``/proc/self`` is this process's own folder there, and nobody else's.
_SYSTEM = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo"),
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/vmstat", "/proc/filesystems"),
    *("/proc/sys/vm", "/sys/devices/system", "/sys/fs/cgroup", "/sys/kernel/mm"),
    *("/dev/zero", "/dev/random", "/dev/urandom"),
)
#: Read by the GPU's driver library; those of GPUs that are not there are passed over.
_GPU = (
    "/proc/driver/nvidia",
    "/proc/devices",
    "/proc/modules",
    "/sys/bus/pci",
    "/sys/devices",
    "/sys/module",
    "/usr/local/cuda",
)
_OURS = ("unified", "schedulers", "separator", "fusion")


def system_paths() -> list[Path]:
    """Return what any Python process may read: its libraries, the modules it can import, facts about the machine."""
    return [*map(Path, _SYSTEM), Path(sys.prefix), Path(sys.base_prefix), *_module_paths(sys.path), *_our_packages()]


def device_paths() -> tuple[Path, ...]:
    """Return the devices that any process may use."""
    return (Path("/dev/null"),)


def gpu_devices() -> tuple[Path, ...]:
    """Return the device files of NVIDIA's GPUs."""
    return tuple(sorted(Path("/dev").glob("nvidia*")))


def reading_confinement(readable: Iterable[Path], cache: Path, *, mode: Mode = "auto") -> Confinement:
    """Return what a process that reads a job may use.

    Args:
        readable: The job's folder and those of the data that it may name.
        cache: Where converted datasets go: the only place where it may write.
        mode: What to do where the system offers less.
    """
    return Confinement(mode=mode, readable=tuple(readable), writable=(cache,))


def worker_confinement(
    readable: Iterable[Path], writable: Iterable[Path], devices: Sequence[str], *, mode: Mode
) -> Confinement | None:
    """Return what workers on these devices may use; None: they are not confined.

    With ``"auto"``, workers of GPUs are not: nobody has seen yet whether CUDA does without what is refused.

    Args:
        readable: Folders of jobs and data.
        writable: Folders of results, checkpoints and temporary files, which go to the first.
        devices: ``"cpu"`` or ``"cuda:N"``, of all slots.
        mode: What was asked for.
    """
    has_gpu = any(device != "cpu" for device in devices)
    if mode == "off" or (mode == "auto" and has_gpu):
        return None
    system = tuple(map(Path, _GPU)) if has_gpu else ()
    gpus = gpu_devices() if has_gpu else ()
    return Confinement(mode=mode, readable=(*system, *readable), writable=tuple(writable), devices=gpus)


def _module_paths(search: Sequence[str]) -> list[Path]:
    """Return where modules are imported from, but for places where much else is.

    Python puts the folder where it happens to be started among them; and a whole home holds keys and passwords.
    """
    here, home = Path.cwd(), Path.home()
    paths = [Path(entry) for entry in search if entry]
    return [path for path in paths if path.is_absolute() and path != here and not home.is_relative_to(path)]


def _our_packages() -> list[Path]:
    parent = Path(__file__).resolve().parents[2]
    return [parent / name for name in _OURS]
