"""The targets V1 to V8 of the design, judged by what was found; each becomes one printed line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.fusion_coverage_targets import Target

Found = Mapping[str, Any]


def aims(found: Found) -> list[Target]:
    """Return every target, in order; what was not measured is NOT-RUN."""
    return [*_build(found.get("build")), *_select(found.get("select")), *_prediction(found.get("load")),
            *_mishits(found.get("mishits")), *_heads(found.get("heads")), *_sound(found), *_batching(found.get("load")),
            Target(id="V8", measure="figures", value=_size(found.get("figures")), op=">=", bound=12)]  # fmt: skip


def _build(found: Found | None) -> Iterator[Target]:
    bounds = (("variants_mtl", "=", 40), ("variants_single", "=", 30), ("seconds", "<=", 1200), ("build_speedup", ">=", 2))
    for measure, op, bound in bounds:
        yield Target(id="V1", measure=measure, value=(found or {}).get(measure), op=op, bound=bound)


def _select(found: Found | None) -> Iterator[Target]:
    yield Target(id="V2", measure="select_p99_ms", value=(found or {}).get("p99_ms"), op="<=", bound=1)


def _prediction(found: Found | None) -> Iterator[Target]:
    yield Target(id="V3", measure="prediction_error_median", value=(found or {}).get("prediction_error"), op="<=", bound=0.25)


def _mishits(found: Found | None) -> Iterator[Target]:
    for residency in ("all", "none"):
        value = None if found is None else found["ratio_c_to_a"].get(residency)
        yield Target(id="V4", measure=f"mishit_ratio_C_to_A_{residency}_resident", value=value, op=">=", bound=1.6)


def _heads(found: Found | None) -> Iterator[Target]:
    yield Target(id="V5", measure="latency_cut_at_15", value=(found or {}).get("cut_at_15"), op=">=", bound=0.2)
    yield Target(id="V5", measure="gpu_latency_cut_at_15", value=None, op=">=", bound=0.15)


def _sound(found: Found) -> Iterator[Target]:
    drain, swap, fuzz = (found.get(name) for name in ("drain", "swap", "fuzz"))
    yield Target(id="V6", measure="lost_in_drain", value=None if drain is None else drain["lost"], op="=", bound=0)
    yield Target(
        id="V6", measure="lost_in_swap", value=None if swap is None else swap["lost"] + swap["closed"], op="=", bound=0
    )
    yield Target(id="V6", measure="malformed_requests", value=(fuzz or {}).get("requests"), op=">=", bound=100_000)
    yield Target(id="V6", measure="status_5xx", value=(fuzz or {}).get("status_5xx"), op="=", bound=0)
    yield Target(id="V6", measure="memory_growth_mib", value=(fuzz or {}).get("growth_mib"), op="<=", bound=4)


def _batching(found: Found | None) -> Iterator[Target]:
    for concurrency in (1, 4, 16):
        value = None if found is None else found["throughput_ratio"].get(str(concurrency))
        bound = 1.5 if concurrency == 16 else 0.9
        yield Target(id="V7", measure=f"throughput_ratio_at_{concurrency}", value=value, op=">=", bound=bound)


def _size(found: Any) -> int | None:
    return None if found is None else len(found)
