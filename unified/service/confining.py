"""What the workers of a queue may touch, and how the service tells of it. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence

from unified import sandbox
from unified.queue.config import ServiceConfig
from unified.queue.root import Root
from unified.sandbox.folders import worker_confinement
from unified.sandbox.records import Confinement, Mode


def confinement_of_workers(root: Root, config: ServiceConfig, devices: Sequence[str]) -> Confinement | None:
    """Return what workers may use, who host any job of the queue in turn: jobs and data, but not the store or the settings."""
    readable = (root.data, root.files, root.cache, *config.data_roots)
    return worker_confinement(readable, (root.cache / "scratch", root.path / "jobs"), devices, mode=config.sandbox)


def ring_text(mode: Mode, devices: Sequence[str]) -> str:
    """Return in a line what keeps jobs from what is not theirs."""
    if mode == "off":
        return "off"
    text = f"{mode}; jobs are {sandbox.describe(sandbox.available())}"
    if mode == "auto" and any(device != "cpu" for device in devices):
        text += "; not so the workers of GPUs, unless sandbox is 'required'"
    return text
