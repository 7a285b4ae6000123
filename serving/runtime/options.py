"""How a service runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serving.errors import ServingError
from serving.table import QUANTILES


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions:
    """How a service runs.

    Attributes:
        device: Where variants run, as PyTorch names it.
        threads: Of PyTorch on the CPU: as many as the variants were profiled with.
        quantile: Of the profiled latencies, which predictions are made of.
        max_batch: Rows in one batch. 1 turns batching off.
        max_delay_ms: How long an idle device waits for a batch to grow. At 0 it never does, and batches form while it is
            busy: a fixed delay can only lose where the queue is short (each request waits, none is gained), and where it is
            long the device is busy anyway.
        margin_ms: Kept between a promise and the moment at which a batch must start for it.
        max_request_rows: Rows in one request. A request is never split: one of more than ``max_batch`` rows runs alone.
        max_waiting_rows: Rows that wait at most; beyond that requests are refused.
        memory_bytes: Of weights on the device at most, None for no limit.
        host_cache_bytes: Of weights kept in host memory after they left the device; no use where the device is the CPU.
        pinned: Ids or names of variants that are loaded at the start and stay.
        refresh_seconds: How often to look whether the store has changed, 0 for never.
        drain_grace_seconds: How long a draining service still accepts requests, for balancers to notice.
        mishit_log: File to which each mishit is appended as a line of JSON.
    """

    device: str = "cpu"
    threads: int = 1
    quantile: str = "p95"
    max_batch: int = 32
    max_delay_ms: float = 0.0
    margin_ms: float = 0.0
    max_request_rows: int = 256
    max_waiting_rows: int = 1024
    memory_bytes: int | None = None
    host_cache_bytes: int = 0
    pinned: tuple[str, ...] = ()
    refresh_seconds: float = 2.0
    drain_grace_seconds: float = 0.0
    mishit_log: Path | None = None

    def __post_init__(self) -> None:
        problems = [
            f"expected {name} >= {least}, got {getattr(self, name)}"
            for name, least in _LEAST.items()
            if not getattr(self, name) >= least
        ]
        if self.memory_bytes is not None and self.memory_bytes <= 0:
            problems.append(f"expected memory_bytes > 0, got {self.memory_bytes}")
        if self.quantile not in QUANTILES:
            problems.append(f"expected quantile in {', '.join(QUANTILES)}; got {self.quantile!r}")
        if self.max_waiting_rows < self.max_request_rows:
            problems.append(
                f"expected max_waiting_rows >= max_request_rows, or the largest request is never accepted; got "
                f"{self.max_waiting_rows} and {self.max_request_rows}"
            )
        if problems:
            raise ServingError("\n".join(problems))


_LEAST = {
    "threads": 1,
    "max_batch": 1,
    "max_delay_ms": 0,
    "margin_ms": 0,
    "max_request_rows": 1,
    "host_cache_bytes": 0,
    "refresh_seconds": 0,
    "drain_grace_seconds": 0,
}
