"""The machine that latencies are measured on: they say nothing about another one."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch

from serving.errors import ServingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a latency depends on, apart from the network.

    Attributes:
        device: As PyTorch writes it: ``cpu``, ``cuda:0``.
        device_name: Of the GPU; the CPU's for ``cpu``.
        cpu: Model of the processor.
        capability: Vector instructions that PyTorch uses on it.
        num_cores: That this process may use.
        threads: Intra-op threads of PyTorch.
        torch: Version.
        system: Operating system and its architecture.
        dtype: Of PyTorch's tensors unless said otherwise.
    """

    device: str
    device_name: str
    cpu: str
    capability: str
    num_cores: int
    threads: int
    torch: str
    system: str
    dtype: str

    @classmethod
    def here(cls, device: str = "cpu", threads: int = 1) -> Self:
        """Return this machine.

        Args:
            device: Where variants run.
            threads: With which they run.

        Raises:
            ServingError: If there is no such device here.
        """
        place = check_device(device)
        cpu = _cpu()
        return cls(
            device=str(place),
            device_name=torch.cuda.get_device_name(place) if place.type == "cuda" else cpu,
            cpu=cpu,
            capability=torch.backends.cpu.get_cpu_capability(),
            num_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            threads=threads,
            torch=torch.__version__,
            system=f"{platform.system()} {platform.machine()}",
            dtype=str(torch.get_default_dtype()).removeprefix("torch."),
        )

    @property
    def fingerprint(self) -> str:
        """16 hex digits that differ where anything in it does."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def is_here(self) -> bool:
        """Whether it is this machine."""
        try:
            return Hardware.here(self.device, self.threads) == self
        except ServingError:
            return False

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return what :meth:`to_json` gave; raises TypeError if it is nothing of the kind."""
        return cls(**content)


def check_device(device: str) -> torch.device:
    """Return a device that is there, GPUs with their number; raises ServingError for any other."""
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ServingError(f"expected a device such as cpu or cuda:0, got {device!r}") from None
    if place.type == "cpu":
        return torch.device("cpu")
    if place.type != "cuda" or not torch.cuda.is_available() or (place.index or 0) >= torch.cuda.device_count():
        raise ServingError(f"there is no device {device!r} here; use cpu, or on a machine with GPUs cuda:0")
    return torch.device("cuda", place.index or 0)


@cache
def _cpu() -> str:
    """Return the model of the processor, its family and number where the name says little."""
    facts: dict[str, str] = {}
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    numbers = [f"{name} {facts[key]}" for name, key in (("family", "cpu family"), ("model", "model")) if facts.get(key)]
    name = facts.get("model name") or platform.processor() or platform.machine()
    return " ".join([name, *numbers])
