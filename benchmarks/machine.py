"""The machine, the versions and the commit that a result was measured with."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from benchmarks.measure import ROOT

PACKAGES = ("torch", "numpy", "scikit-learn", "psutil")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the figures depend on; no name of the machine or its user."""

    cpu: str
    num_cores: int
    num_physical_cores: int | None
    memory_bytes: int
    system: str


def describe_machine() -> Machine:
    """Return the machine that this process may use (cores by its CPU affinity)."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return Machine(
        cpu=models[0] if models else platform.machine(),
        num_cores=len(os.sched_getaffinity(0)),
        num_physical_cores=psutil.cpu_count(logical=False),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of what the figures depend on, without importing it."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def git_commit() -> str | None:
    """Return the commit of the checkout, with ``+`` behind it if files have been changed since; None without one."""
    revision = _git("rev-parse", "HEAD")
    if not revision:
        return None
    return revision + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of Python, and of those of these packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
