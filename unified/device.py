"""What this machine has: cores, host memory, GPUs. Asked without importing torch and without waking CUDA.

A process that has used CUDA cannot fork, so the engine asks the driver's management library (NVML) instead.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from unified.errors import UnifiedError

if TYPE_CHECKING:
    from types import ModuleType

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySize:
    """Memory of a host or of a GPU, in bytes.

    Attributes:
        total_bytes: All that this process could ever use.
        available_bytes: What can be had now without swapping or failing.
    """

    total_bytes: int
    available_bytes: int


def host_memory(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> MemorySize:
    """Return the host's memory, or the share that this process's control groups (a container's limit) leave it if lower.

    Args:
        cgroups: Where control groups are mounted.
        membership: The file that names this process's groups.
    """
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for limit, used in _memory_limits(cgroups, membership):
        total, available = min(total, limit), min(available, max(0, limit - used))
    return MemorySize(total_bytes=total, available_bytes=available)


def pss_bytes(pids: Iterable[int]) -> int:
    """Return the memory of some processes together, pages that several of them share counted once (PSS).

    A process that is gone counts as nothing; where the system does not tell PSS, what is the process's own (USS) counts.
    """
    return sum(_pss_bytes(pid) for pid in pids)


def num_usable_cores(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Return the number of cores that this process may use: its affinity, or its control groups' quota if lower."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = (os.cpu_count() or 1) if affinity is None else len(affinity(0))
    return max(1, min([cores, *_core_limits(cgroups, membership)]))


def gpu_memory(device: str) -> MemorySize | None:
    """Return the memory of a GPU such as ``"cuda:0"``, or None if the driver does not tell."""
    nvml, handle = _gpu(device)
    if nvml is None:
        return None
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError:
        return None
    return MemorySize(total_bytes=memory.total, available_bytes=memory.free)


def gpu_utilisation(device: str) -> float | None:
    """Return for how much of the last second or less a GPU was at work, in percent, or None if the driver does not tell."""
    nvml, handle = _gpu(device)
    if nvml is None:
        return None
    try:
        return float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except nvml.NVMLError:
        return None


def list_gpus() -> tuple[str, ...]:
    """Return the GPUs that torch would see here, ``("cuda:0", ...)``; none if torch was built without CUDA."""
    return tuple(f"cuda:{index}" for index in range(len(_handles()))) if torch_has_cuda() else ()


def list_devices() -> tuple[str, ...]:
    """Return all devices, ``"cpu"`` first."""
    return ("cpu", *list_gpus())


def parse_device(text: str) -> tuple[str, ...]:
    """Return the devices that a user's word stands for: ``("cpu",)`` or one or several of ``"cuda:N"``.

    Args:
        text: ``"auto"`` (all GPUs, or the CPU without any), ``"cpu"``, ``"cuda"`` (all GPUs) or ``"cuda:N"``.

    Raises:
        UnifiedError: If there is no such device, with those that there are.

    Example:
        >>> parse_device("cpu")
        ('cpu',)
    """
    gpus = () if text == "cpu" else list_gpus()
    if text == "auto":
        return gpus or ("cpu",)
    if text == "cpu":
        return ("cpu",)
    if re.fullmatch(r"cuda(:\d+)?", text) is None:
        raise UnifiedError(f"device {text!r} is unknown; give 'auto', 'cpu', 'cuda' or one GPU such as 'cuda:0'")
    if not gpus:
        raise UnifiedError(f"device {text!r} is not there: {_why_no_gpu()}; use device 'cpu' or 'auto'")
    if text == "cuda":
        return gpus
    if text not in gpus:
        raise UnifiedError(f"device {text!r} is not there; this machine has {', '.join(gpus)}")
    return (text,)


@functools.cache
def torch_has_cuda() -> bool:
    """Whether the installed torch was built with CUDA, read from its version file: importing it costs a second."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py")
    text = version.read_text(encoding="utf-8") if version.exists() else ""
    return re.search(r"^cuda\b[^=\n]*=\s*['\"]\d", text, re.MULTILINE) is not None


def _why_no_gpu() -> str:
    if not torch_has_cuda():
        return "the installed torch was built without CUDA"
    if _nvml() is None:
        return "no NVIDIA driver answers"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "no GPU" if hidden is None else f"CUDA_VISIBLE_DEVICES={hidden!r} leaves no GPU"


# ---- GPUs


def _nvml() -> ModuleType | None:
    return _load_nvml(os.getpid())


@functools.cache
def _load_nvml(_: int) -> ModuleType | None:
    """Start NVML once in each process; a fork's child must not use its parent's."""
    try:
        import pynvml  # here: of no use on most hosts
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _gpu(device: str) -> tuple[Any, Any]:
    """Return NVML and the handle of a GPU, or twice None."""
    handles, index = _handles(), int(device.partition(":")[2] or 0)
    return (_nvml(), handles[index]) if index < len(handles) else (None, None)


def _handles() -> list[Any]:
    """Return NVML's handles of the visible GPUs, in CUDA's order on machines whose GPUs are alike."""
    nvml = _nvml()
    if nvml is None:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        if visible is None:
            return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return []
    handles = []
    for name in visible.split(","):
        handle = _handle(nvml, name.strip())
        if handle is None:
            break  # CUDA, too, sees only those before the first that is not there
        handles.append(handle)
    return handles


def _handle(nvml: ModuleType, name: str) -> Any:
    try:
        if re.fullmatch(r"\d+", name):
            return nvml.nvmlDeviceGetHandleByIndex(int(name))
        return nvml.nvmlDeviceGetHandleByUUID(name) if name else None
    except nvml.NVMLError:
        return None


# ---- the host


def _pss_bytes(pid: int) -> int:
    try:
        memory = psutil.Process(pid).memory_full_info()
    except psutil.NoSuchProcess:
        return 0
    except psutil.AccessDenied:
        return _rss_bytes(pid)
    return getattr(memory, "pss", memory.uss)


def _rss_bytes(pid: int) -> int:
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0


def _memory_limits(cgroups: Path, membership: Path) -> list[tuple[int, int]]:
    """Return limit and use, in bytes, of each control group with a limit that this process is in."""
    found = []
    for folder in _group_folders(cgroups, membership, "memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            # What was read from files and not lately used goes as soon as somebody needs the room.
            found.append((limit, max(0, used - _reclaimable(folder / "memory.stat"))))
    return found


def _core_limits(cgroups: Path, membership: Path) -> list[int]:
    found = []
    for folder in _group_folders(cgroups, membership, "cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        quota, period = (
            quota or _text(folder / "cpu.cfs_quota_us"),
            period or _text(folder / "cpu.cfs_period_us"),
        )
        if quota.isdecimal() and period.isdecimal() and int(period):
            found.append(math.ceil(int(quota) / int(period)))
    return found


def _group_folders(cgroups: Path, membership: Path, controller: str) -> list[Path]:
    """Return the folders of this process's group and of all groups around it, in version 1 or 2 of control groups."""
    folders = []
    for line in _text(membership).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups / controller if controllers else cgroups
        inner = root / path.lstrip("/")
        folders += [inner, *(parent for parent in inner.parents if parent.is_relative_to(root))]
    return [folder for folder in folders if folder.is_dir()]


def _reclaimable(path: Path) -> int:
    text = _text(path)
    # Version 1 also tells it of the group without those inside it, under the shorter name.
    for name in ("total_inactive_file", "inactive_file"):
        match = re.search(rf"^{name} (\d+)$", text, re.MULTILINE)
        if match:
            return int(match[1])
    return 0


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
