"""Variants in memory that a service can serve, with profiles written by hand."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from serving.errors import ServingError
from serving.queries import Query
from serving.records import Family, Kind, Source, TaskSpec, TensorSpec, Variant
from serving.runtime.events import Event
from serving.runtime.requests import InferRequest
from serving.table import Table

TASKS = {"kind": 3, "size": 1}  # outputs of each
FAMILY = Family(
    name="things",
    inputs=(TensorSpec(name="x", dtype="FP32", shape=(4,)),),
    tasks=tuple(TaskSpec(name=task, kind=Kind.REGRESSION, shape=(width,)) for task, width in TASKS.items()),
)


class Heads(nn.Module):
    """A layer that all tasks share and one for each; it runs when its gate is open."""

    def __init__(self, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.shared = nn.Linear(4, 8)
        self.heads = nn.ModuleDict({task: nn.Linear(8, TASKS[task]) for task in tasks})
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.failures: list[Exception | None] = []  # of the next calls, None for none
        self.eval()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.entered.set()
        self.gate.wait(30)
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        shared = self.shared(x).relu()
        return {task: head(shared) for task, head in self.heads.items()}


@dataclass(frozen=True, kw_only=True)
class Made:
    """A variant: its network and what its profile says; each row beyond the first takes a tenth.

    Profiles speak of many seconds where the networks take none, so that no decision hangs on how fast the machine is.
    """

    id: str
    tasks: tuple[str, ...] = tuple(TASKS)
    score: float = 0.9
    infer_ms: float = 50_000.0
    load_ms: float = 20_000.0
    num_bytes: int = 100
    name: str = ""
    seed: int = 0


@dataclass
class Memory:
    """A store in memory. Networks are loaded when ``gate`` is open; what is in ``broken`` cannot be loaded.

    ``others`` has what there is of further families with the same inputs and tasks; whoever changes it calls ``put``.
    """

    made: list[Made]
    version: int = 1
    networks: dict[str, Heads] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    loads: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    others: dict[str, list[Made]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gate.set()
        self.put(self.made)

    def put(self, made: Sequence[Made]) -> None:
        """Hold these variants and no others."""
        self.made = list(made)
        self.version += 1
        for one in [*made, *(one for others in self.others.values() for one in others)]:
            self.networks.setdefault(one.id, Heads(one.tasks, one.seed))

    def families(self) -> dict[str, Family]:
        return {FAMILY.name: FAMILY} | {name: replace(FAMILY, name=name) for name in self.others}

    def examples(self, family: str) -> tuple[Tensor, ...]:
        return (torch.linspace(-1, 1, 8).reshape(2, 4),)

    def load(self, key: str) -> nn.Module:
        self.gate.wait(30)
        self.loads.append(key)
        if key in self.broken:
            raise ServingError(f"the files of {key} are not those that were added")
        return self.networks[key]

    def table(self, family: str, hardware: str | None = None) -> Table:
        rows = sorted(self.others.get(family, self.made), key=lambda one: (one.infer_ms, one.id))
        batches = (1, 2, 4, 8)
        latency = np.array([[one.infer_ms * (0.9 + 0.1 * rows) for rows in batches] for one in rows])
        return Table(
            family=self.families()[family],
            hardware="",
            variants=tuple(replace(_variant(one), family=family) for one in rows),
            batches=batches,
            infer_ms={"p50": latency, "p95": latency},
            load_cold_ms=np.array([one.load_ms for one in rows]),
            load_warm_ms=np.array([one.load_ms / 2 for one in rows]),
            num_bytes=np.array([float(one.num_bytes) for one in rows]),
            scores=np.array([[one.score if task in one.tasks else math.nan for task in TASKS] for one in rows]),
        )


@dataclass
class Heard:
    """A listener that keeps what it is told."""

    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


def ask(
    rows: int = 1, *, tasks: Sequence[str] = tuple(TASKS), version: str | None = None, seed: int = 0, **limits: object
) -> InferRequest:
    """Return a request for so many rows, received now."""
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))
    query = Query(tasks=frozenset(tasks), **limits)  # type: ignore[arg-type]
    return InferRequest(family="things", query=query, inputs=(x,), received=time.monotonic(), version=version, id=str(seed))


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine to its end, and no longer than a minute."""
    asyncio.run(asyncio.wait_for(scenario(), 60))


async def until(is_so: Callable[[], bool]) -> None:
    """Let others go on until something is so; the minute of :func:`run` is its limit."""
    while not is_so():
        await asyncio.sleep(0.001)


def expected(network: Heads, request: InferRequest) -> Mapping[str, Tensor]:
    """Return what a network answers a request alone."""
    with torch.no_grad():
        return network(*request.inputs)


def _variant(one: Made) -> Variant:
    return Variant(
        id=one.id,
        name=one.name or one.id,
        family=FAMILY.name,
        tasks=one.tasks,
        source=Source.GIVEN,
        parent=None,
        ratio=0.0,
        achieved={},
        num_parameters=1,
        flops=1,
        num_bytes=one.num_bytes,
        weights_sha256="",
    )
