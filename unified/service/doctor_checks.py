"""Is this a place where a queue can keep its promise? Each check is ok, a warning or a failure, with a remedy."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, get_args

from unified import sandbox
from unified.device import host_memory, list_gpus, num_usable_cores, parse_device
from unified.errors import UnifiedError
from unified.job_state import JobState
from unified.quantities import bytes_text, plural, seconds_text
from unified.queue.config import ServiceConfig
from unified.queue.errors import StoreVersionError
from unified.queue.mounts import NETWORK_FILE_SYSTEMS, file_system
from unified.queue.root import Root
from unified.queue.schema import VERSION
from unified.queue.store import JobStore
from unified.service.confining import ring_text

Level = Literal["ok", "warn", "fail"]

_NEEDED = ("torch", "sqlalchemy", "apscheduler", "safetensors", "pydantic")
_FOR_HTTP = ("fastapi", "uvicorn", "prometheus-client")
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_FSYNC_ROUNDS = 15
_SLOW_FSYNC_SECONDS = 0.05
_SILENT_SECONDS = 15.0
_MIN_MEMORY = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What one look found; ``remedy`` is what to do unless all is well."""

    name: str
    level: Level
    text: str
    remedy: str = ""


def examine(path: Path) -> Iterator[Check]:
    """Yield what there is to say about the queue in ``path``, or about the machine if there is none yet."""
    yield from _versions()
    root = Root(path=path.resolve())
    if not root.database.is_file():
        remedy = f"check --root, or make one there: unified serve --root {path}"
        yield Check(name="root", level="fail", text=f"{root.path} is not a queue's folder", remedy=remedy)
        yield from _machine()
        return
    yield _writable(root)
    yield _file_system(root)
    yield _fsync(root)
    config, check = _config(root)
    yield check
    yield _disk(root, config)
    yield from _machine()
    yield _sandbox(_as_served(root, config))
    yield _supervisor(root)
    yield from _store(root)
    yield from _leftovers(root)


def _versions() -> Iterator[Check]:
    found = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    missing = []
    for package in ("unifiednn", *_NEEDED, *_FOR_HTTP):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            missing.append(package)
    text = ", ".join(f"{name} {number}" for name, number in found.items())
    yield Check(name="versions", level="ok", text=text)
    needed = [name for name in missing if name in _NEEDED]
    if needed:
        yield Check(name="packages", level="fail", text=f"not installed: {', '.join(needed)}", remedy="install unifiednn anew")
    http = [name for name in missing if name in _FOR_HTTP]
    if http:
        text = f"not installed: {', '.join(http)}; only --http needs them"
        yield Check(name="packages", level="warn", text=text, remedy="install unifiednn anew to serve HTTP")


def _writable(root: Root) -> Check:
    closed = [name for name in ("", "incoming", "jobs", "results") if not os.access(root.path / name, os.W_OK | os.X_OK)]
    if closed:
        where = ", ".join(str(root.path / name) for name in closed)
        remedy = "give this user the right to write there"
        return Check(name="root", level="fail", text=f"cannot write to {where}", remedy=remedy)
    return Check(name="root", level="ok", text=f"{root.path} is a queue's folder and can be written to")


def _file_system(root: Root) -> Check:
    kind = file_system(root.path) or "unknown"
    if kind in NETWORK_FILE_SYSTEMS:
        remedy = "move the root to a local disk: a network file system cannot keep the promise"
        return Check(name="file system", level="fail", text=f"{kind}, over a network", remedy=remedy)
    if kind in _IN_MEMORY:
        remedy = "put the root on a disk if it must survive a reboot"
        return Check(name="file system", level="warn", text=f"{kind}, in memory", remedy=remedy)
    return Check(name="file system", level="ok", text=kind)


def _fsync(root: Root) -> Check:
    try:
        seconds = fsync_seconds(root.path)
    except OSError as error:
        remedy = "the disk is full, broken or read-only; mend it before anything is submitted"
        return Check(name="fsync", level="fail", text=f"a small file cannot be written: {error}", remedy=remedy)
    text = f"{seconds * 1000:.1f} ms to bring a small file to the disk"
    if seconds > _SLOW_FSYNC_SECONDS:
        remedy = "submissions and checkpoints wait for it; a faster disk helps"
        return Check(name="fsync", level="warn", text=text, remedy=remedy)
    return Check(name="fsync", level="ok", text=text)


def fsync_seconds(folder: Path) -> float:
    """Return the median time that it takes to bring a small file in ``folder`` to the disk."""
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(_FSYNC_ROUNDS):
            began = time.perf_counter()
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def _config(root: Root) -> tuple[ServiceConfig, Check]:
    try:
        config = ServiceConfig.read(root.config)
    except UnifiedError as error:
        text = "; ".join(str(error).splitlines())
        return ServiceConfig(), Check(
            name="config", level="fail", text=text, remedy="correct it; docs/queue.md lists the settings"
        )
    given = root.config.name if root.config.is_file() else "defaults"
    return config, Check(name="config", level="ok", text=f"{given}: {_changed(config)}")


def _changed(config: ServiceConfig) -> str:
    set_ = [f"{name} = {getattr(config, name)}" for name in sorted(config.model_fields_set)]
    return ", ".join(set_) or "nothing is set"


def _disk(root: Root, config: ServiceConfig) -> Check:
    stat = os.statvfs(root.path)
    free, least = stat.f_bavail * stat.f_frsize, config.min_free_bytes
    text = f"{bytes_text(free)} free; below {bytes_text(least)} nothing is accepted"
    if free < least:
        remedy = "make room, or lower keep_results_days or min_free_bytes in config.toml"
        return Check(name="disk", level="fail", text=text, remedy=remedy)
    if free < 4 * least:
        return Check(name="disk", level="warn", text=text, remedy="make room soon")
    return Check(name="disk", level="ok", text=text)


def _machine() -> Iterator[Check]:
    gpus = list_gpus()
    what = f"{plural(len(gpus), 'GPU')} ({', '.join(gpus)})" if gpus else f"no GPU, {plural(num_usable_cores(), 'core')}"
    yield Check(name="slots", level="ok", text=what)
    memory = host_memory()
    text = f"{bytes_text(memory.available_bytes)} of {bytes_text(memory.total_bytes)} available"
    if memory.available_bytes < _MIN_MEMORY:
        yield Check(name="memory", level="warn", text=text, remedy="stop other programs; jobs may not fit")
    else:
        yield Check(name="memory", level="ok", text=text)


def _as_served(root: Root, config: ServiceConfig) -> ServiceConfig:
    """Return the settings with the ring that the running supervisor was asked for, maybe on its command line."""
    said = root.read_status() if root.supervisor() is not None else None
    asked = (said or {}).get("sandbox")
    return config.model_copy(update={"sandbox": asked}) if asked in get_args(sandbox.Mode) else config


def _sandbox(config: ServiceConfig) -> Check:
    parts = sandbox.available()
    if config.sandbox == "off":
        return Check(name="sandbox", level="ok", text=f"off; here jobs could be {sandbox.describe(parts)}")
    text = ring_text(config.sandbox, _devices(config))
    if all(part.is_available for part in parts):
        return Check(name="sandbox", level="ok", text=text)
    remedy = "use Linux 6.2 or newer with Landlock switched on, in a container that allows it"
    return Check(name="sandbox", level="fail" if config.sandbox == "required" else "warn", text=text, remedy=remedy)


def _devices(config: ServiceConfig) -> tuple[str, ...]:
    try:
        return parse_device(config.device)
    except UnifiedError:
        return ("cpu",)  # 'serve' says what is wrong with it


def _supervisor(root: Root) -> Check:
    holder, said = root.supervisor(), root.read_status() or {}
    if holder is None:
        left = " (a lock file of an earlier one is left; it locks nothing)" if root.lock.is_file() else ""
        remedy = f"start one: unified serve --root {root.path}"
        return Check(name="supervisor", level="warn", text=f"none is running{left}", remedy=remedy)
    who = f"process {holder.get('pid', '?')}"
    silent = time.time() - float(said.get("time") or holder.get("started") or 0.0)
    if silent > _SILENT_SECONDS:
        remedy = f"look at its output; if it hangs, kill it and start it anew: kill {holder.get('pid', 'PID')}"
        return Check(
            name="supervisor",
            level="fail",
            text=f"{who} holds the lock and has said nothing for {seconds_text(silent)}",
            remedy=remedy,
        )
    return Check(name="supervisor", level="ok", text=f"{who}, {plural(len(said.get('slots') or []), 'slot')}")


def _store(root: Root) -> Iterator[Check]:
    try:
        store = JobStore.open(root.database)
    except StoreVersionError as error:
        yield Check(name="store", level="fail", text=str(error), remedy="use the unified that wrote it, or a newer one")
        return
    except UnifiedError as error:
        yield Check(name="store", level="fail", text=str(error), remedy="see the message")
        return
    try:
        yield from _open_store(root, store)
    finally:
        store.close()


def _open_store(root: Root, store: JobStore) -> Iterator[Check]:
    try:
        store.check()
    except Exception as error:  # noqa: BLE001 - whatever keeps it from being written to is what is to be told
        text = f"cannot be written to: {str(error).splitlines()[0]}"
        yield Check(name="store", level="fail", text=text, remedy="check rights and room of store.db and its -wal file")
        return
    found = store.counts()
    counts = ", ".join(f"{found[state]} {state}" for state in JobState if found.get(state)) or "no jobs"
    yield Check(name="store", level="ok", text=f"schema {VERSION}; {counts}")
    lost = store.expired()
    if lost:
        text = f"{plural(len(lost), 'job')} on a slot without a valid lease: {', '.join(row.id for row in lost[:5])}"
        remedy = "a running supervisor takes them back by itself within seconds; start one if none runs"
        yield Check(name="leases", level="warn", text=text, remedy=remedy)
    else:
        yield Check(name="leases", level="ok", text="no job is on a slot without a valid lease")
    yield _ticks(root, store)


def _ticks(root: Root, store: JobStore) -> Check:
    """Say which of the supervisor's regular tasks have not run for long, if one runs."""
    if root.supervisor() is None:
        return Check(name="ticks", level="ok", text="no supervisor, so none is due")
    now = time.time()
    ages = {name: max(0.0, now - at) for name, at in store.ticks().items()}
    late = {name: age for name, age in ages.items() if age > _late_after(name)}
    if late:
        text = ", ".join(f"{name} {seconds_text(age)} ago" for name, age in late.items())
        return Check(name="ticks", level="warn", text=f"late: {text}", remedy="the supervisor may hang; look at its output")
    return Check(name="ticks", level="ok", text=f"{plural(len(ages), 'regular task')} in time")


def _late_after(tick: str) -> float:
    return 3600.0 if tick == "retention" else 180.0


def _leftovers(root: Root) -> Iterator[Check]:
    rejected, dead = _count(root.rejected), _count(root.path / "dead")
    if rejected or dead:
        text = f"{plural(rejected, 'rejected entry').replace('entrys', 'entries')}, {plural(dead, 'dead job')}"
        yield Check(name="leftovers", level="ok", text=f"{text}: see {root.rejected} and 'unified ls --state dead'")


def _count(folder: Path) -> int:
    try:
        return sum(not entry.name.startswith(".") for entry in folder.iterdir())
    except OSError:
        return 0
