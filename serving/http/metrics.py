"""The numbers of ``GET /metrics`` in Prometheus' text format, from the service's events; in a registry of their own.

Labels come only from the store, so that no client can make series.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from serving.runtime.events import BatchRun, Event, Evicted, Loaded, Quarantined, RequestEnded
from serving.runtime.service import Service

CONTENT_TYPE = CONTENT_TYPE_LATEST
MAX_TASK_SETS = 64  #: beyond so many, the label ``tasks`` is how many they are

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_RATIOS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)


class Metrics:
    """Counts what the service says, and reads how it is when asked.

    Args:
        service: What it listens to.
    """

    def __init__(self, service: Service) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self._task_sets: dict[tuple[str, ...], str] = {}
        self._children: dict[tuple[object, ...], Any] = {}

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"serving_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"serving_{name}", text, labels, buckets=buckets, registry=registry)

        self._responses = counter("infer_responses", "Answers to inference requests, refusals included.", "status")
        self._requests = counter("requests", "Requests of known tasks that ended.", "family", "tasks", "outcome")
        self._mishits = counter("mishits", "Requests that nothing satisfied.", "family", "reason")
        self._selected = counter("selected", "Answers that a variant had part in.", "family", "variant")
        self._loads = counter("loads", "Variants loaded onto the device; warm: from host memory.", "temperature")
        self._evictions = counter("evictions", "Variants that left the device to make room.")
        self._quarantines = counter("quarantines", "Variants taken out of service.")
        self._seconds = histogram("request_seconds", "From body received to answer ready.", _SECONDS, "family")
        self._queue = histogram("queue_seconds", "Waiting for the device, of an answered request.", _SECONDS)
        self._inference = histogram("inference_seconds", "One batch on the device.", _SECONDS, "variant")
        self._rows = histogram("batch_rows", "Rows of a batch.", _ROWS)
        self._ratio = histogram("prediction_ratio", "Measured over predicted latency.", _RATIOS)
        self._add_gauges(service)
        service.listeners.append(self)

    def __call__(self, event: Event) -> None:
        """Count an event."""
        match event:
            case RequestEnded():
                self._count_request(event)
            case BatchRun():
                self._child(self._inference, event.variant).observe(event.seconds)
                self._rows.observe(event.rows)
            case Loaded():
                self._child(self._loads, "warm" if event.warm else "cold").inc()
            case Evicted():
                self._evictions.inc()
            case Quarantined():
                self._quarantines.inc()

    def count_response(self, status: int) -> None:
        """Count the answer to an inference request."""
        self._child(self._responses, str(status)).inc()

    def text(self) -> bytes:
        """Return all numbers as Prometheus reads them."""
        return generate_latest(self._registry)

    def _count_request(self, event: RequestEnded) -> None:
        self._child(self._requests, event.family, self._label(event.tasks), str(event.outcome)).inc()
        self._child(self._seconds, event.family).observe(event.seconds)
        if event.reason is not None:
            self._child(self._mishits, event.family, str(event.reason)).inc()
        if event.queue_seconds is not None:
            self._queue.observe(event.queue_seconds)
        if event.prediction_ratio is not None:
            self._ratio.observe(event.prediction_ratio)
        for variant in event.variants:
            self._child(self._selected, event.family, variant).inc()

    def _label(self, tasks: tuple[str, ...]) -> str:
        if tasks not in self._task_sets and len(self._task_sets) < MAX_TASK_SETS:
            self._task_sets[tasks] = ",".join(tasks)
        return self._task_sets.get(tasks, str(len(tasks)))

    def _child(self, metric: Any, *labels: str) -> Any:
        """Return a series; ``labels()`` of the library checks them at each call, which takes longer than the counting."""
        key = (metric, *labels)
        found = self._children.get(key)
        if found is None:
            found = self._children[key] = metric.labels(*labels)
        return found

    def _add_gauges(self, service: Service) -> None:
        def gauge(name: str, text: str, read: Callable[[], float]) -> None:
            Gauge(f"serving_{name}", text, registry=self._registry).set_function(read)

        gauge("queue_rows", "Rows that wait for the device.", lambda: service.status().waiting_rows)
        gauge("resident_variants", "Variants on the device.", lambda: len(service.status().residents))
        gauge("resident_bytes", "What they take.", lambda: service.status().resident_bytes)
        gauge("draining", "1 while the service is stopping.", lambda: float(service.status().draining))
        gauge("ready", "1 while requests should come.", lambda: float(service.is_ready()))
