"""The service: requests in, answers out, while variants come and go; nothing of HTTP.

One process and one event loop: weights, queues and predictions are shared, so that selection knows what waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from types import TracebackType
from typing import Self

import torch

from serving.errors import ServingError
from serving.queries import Mishit, Reason
from serving.records import Family
from serving.runtime.admission import check_request
from serving.runtime.answering import Answering, internal_refusal, mishit_refusal
from serving.runtime.batching import Batcher
from serving.runtime.deployment import Deployment, Unusable
from serving.runtime.events import BatchRun, Event, Listener, Outcome, RequestEnded
from serving.runtime.executor import Call, Executor, Finished
from serving.runtime.ledger import Ledger, MishitLog
from serving.runtime.loading import Loader
from serving.runtime.options import ServiceOptions
from serving.runtime.requests import InferAnswer, InferRequest, RefusalKind, Refused
from serving.runtime.residency import Residency
from serving.runtime.running import Ran
from serving.runtime.snapshot import Models
from serving.table import Table

_log = logging.getLogger(__name__)


class Phase(Enum):
    """Where in its life a service is."""

    STARTING = auto()
    SERVING = auto()
    DRAINING = auto()  #: not ready any more, and still accepting
    STOPPED = auto()  #: accepting nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """How it is just now.

    Attributes:
        ready: See :meth:`Service.is_ready`.
        draining: Whether it is stopping.
        in_flight: Requests that are accepted and not answered.
        waiting_rows: Samples that wait for the device.
        residents: Ids of the variants on the device.
        resident_bytes: Of their weights.
        quarantined: Ids of the variants that cannot be served, and why.
        store_version: Of the store's content that is served.
    """

    ready: bool
    draining: bool
    in_flight: int
    waiting_rows: int
    residents: tuple[str, ...]
    resident_bytes: int
    quarantined: Mapping[str, str]
    store_version: int


class Service:
    """Answers requests from a store of variants.

    All methods are called in the thread of one event loop.

    Args:
        models: An open store.
        options: How to run.
        listeners: Told each event.

    Example::

        async with Service(VariantStore.open("variants")) as service:
            answer = await service.answer(request)
    """

    def __init__(self, models: Models, *, options: ServiceOptions | None = None, listeners: tuple[Listener, ...] = ()) -> None:
        self.options = options = options or ServiceOptions()
        self.ledger = Ledger()
        self.listeners: list[Listener] = [self.ledger, *listeners]
        device = torch.device(options.device)
        residency = Residency(memory_bytes=options.memory_bytes)
        loader = Loader(
            models.load,
            residency,
            device=device,
            threads=options.threads,
            host_cache_bytes=options.host_cache_bytes,
            tell=self._tell,
        )
        self._deployment = Deployment(models, options, residency, loader, self._tell)
        batcher: Batcher[Call] = Batcher(
            max_batch=options.max_batch,
            max_waiting_rows=options.max_waiting_rows,
            max_delay=options.max_delay_ms / 1e3,
            margin=options.margin_ms / 1e3,
        )
        self._executor = Executor(batcher, device=device, threads=options.threads, deliver=self._deliver)
        self._answering = Answering(self._deployment, self._executor, quantile=options.quantile)
        self._mishit_log = None if options.mishit_log is None else MishitLog(options.mishit_log)
        self._phase = Phase.STARTING
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def start(self) -> None:
        """Read the store, load what is pinned, and accept requests.

        Raises:
            ServingError: If nothing in the store was profiled on this machine, or a pinned variant cannot be served.
        """
        await self._deployment.start()
        self._executor.start()
        self._phase = Phase.SERVING
        if self.options.refresh_seconds:
            self._watch = asyncio.create_task(self._refresh_often())

    async def answer(self, request: InferRequest) -> InferAnswer:
        """Answer a request.

        A cancelled call (its client went away) does not run any more unless its batch has started.

        Raises:
            Refused: With what to do about it.
        """
        self._check_started()
        family, rows = check_request(request, self.families, self.options.max_request_rows)
        tasks = tuple(task for task in family.task_names if task in request.query.tasks)
        ended = partial(RequestEnded, family=family.name, tasks=tasks)
        self._in_flight += 1
        try:
            answer = await self._answer(request, family, rows)
        except Refused as refused:
            self._tell(ended(outcome=_OUTCOMES[refused.kind], seconds=_since(request), reason=_reason(refused.mishit)))
            raise
        except asyncio.CancelledError:
            self._tell(ended(outcome=Outcome.CANCELLED, seconds=_since(request)))
            raise
        except Exception as error:  # a client gets words for whatever it is, and the log the trace
            self._tell(ended(outcome=Outcome.FAILED, seconds=_since(request)))
            raise internal_refusal("the request failed", error) from error
        else:
            self._tell(_answered(answer, ended))
            return answer
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def refresh(self) -> bool:
        """Serve what the store has now; return whether that is anything new. See :meth:`Deployment.refresh`."""
        return await self._deployment.refresh()

    async def drain(self, timeout: float | None = None) -> int:
        """Stop: be not ready at once, accept no more after the grace, finish what is accepted; then close.

        Args:
            timeout: Seconds for the finishing, None for as long as it takes.

        Returns:
            How many accepted requests got no answer.
        """
        self._phase = Phase.DRAINING
        await asyncio.sleep(self.options.drain_grace_seconds)
        self._phase = Phase.STOPPED
        while self._in_flight:
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), timeout)
            except TimeoutError:
                break
        lost = self._in_flight
        self.close()
        return lost

    def close(self) -> None:
        """Stop at once; what waits is refused."""
        self._phase = Phase.STOPPED
        if self._watch is not None:
            self._watch.cancel()
        waited = self._executor.stop()
        stopping = Refused(RefusalKind.DRAINING, "stopped", "the service has stopped; ask another one")
        self._answering.deliver(Finished(calls=waited, ran=[Ran(error=stopping)] * len(waited)))
        self._deployment.close()
        if self._mishit_log is not None:
            self._mishit_log.close()

    def is_live(self) -> bool:
        """Return whether it can answer at all: its thread runs."""
        return self._phase is not Phase.SERVING or self._executor.is_alive()

    def is_ready(self, family: str | None = None) -> bool:
        """Return whether each task of each family, or of one, is answered, and what is pinned is on the device."""
        if self._phase is not Phase.SERVING or not self._executor.is_alive() or not self._deployment.is_pinned_resident():
            return False
        unanswerable = self.unanswerable
        return not unanswerable if family is None else family in self.families and family not in unanswerable

    @property
    def unanswerable(self) -> dict[str, list[str]]:
        """By family the tasks that no variant answers; families that have all are left out."""
        return self._deployment.snapshot.unanswerable()

    @property
    def families(self) -> dict[str, Family]:
        """What is served, by name."""
        return {name: table.family for name, table in self._deployment.snapshot.tables.items()}

    def table(self, family: str) -> Table:
        """Return the variants of a family that are served; raises KeyError if there is no such family."""
        return self._deployment.snapshot.tables[family]

    def status(self) -> ServiceStatus:
        """Return how it is just now."""
        residency = self._deployment.residency
        return ServiceStatus(
            ready=self.is_ready(),
            draining=self._phase in (Phase.DRAINING, Phase.STOPPED),
            in_flight=self._in_flight,
            waiting_rows=self._executor.waiting_rows,
            residents=residency.ids,
            resident_bytes=residency.num_bytes,
            quarantined=dict(self._deployment.quarantined),
            store_version=self._deployment.snapshot.version,
        )

    async def _answer(self, request: InferRequest, family: Family, rows: int) -> InferAnswer:
        if self._phase is Phase.STOPPED:
            raise Refused(RefusalKind.DRAINING, "draining", "the service is stopping; ask another one", retry_after=1)
        problem: Unusable | None = None
        for _ in range(_ATTEMPTS):
            plan = self._answering.decide(request, family, rows)
            if isinstance(plan, Mishit):
                self._log_mishit(request, plan, rows)
                raise mishit_refusal(plan)
            try:
                answer = await self._answering.run(plan)
            except Unusable as unusable:
                problem = unusable
                await self._refresh_quietly()  # it may be gone because the store has changed
            else:
                if answer.mishit is not None:
                    self._log_mishit(request, answer.mishit, rows)
                return answer
        raise internal_refusal("the variants that were chosen cannot be loaded", problem)

    def _check_started(self) -> None:
        if self._phase is Phase.STARTING:
            raise Refused(RefusalKind.NOT_READY, "not_ready", "the service is starting; try again soon", retry_after=1)

    def _log_mishit(self, request: InferRequest, mishit: Mishit, rows: int) -> None:
        if self._mishit_log is not None:
            self._mishit_log.write(request.family, request.query, mishit, rows=rows)

    def _deliver(self, finished: Finished) -> None:
        self._answering.deliver(finished)
        first = finished.calls[0]
        self._tell(BatchRun(variant=first.variant, rows=first.batch_rows, requests=len(finished.calls), seconds=first.seconds))

    def _tell(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)

    async def _refresh_often(self) -> None:
        while True:
            await asyncio.sleep(self.options.refresh_seconds)
            await self._refresh_quietly()

    async def _refresh_quietly(self) -> None:
        try:
            await self.refresh()
        except ServingError as error:
            _log.error("the changed store is not served: %s", error)
        except Exception:  # noqa: BLE001 - it is tried again, and what is served stays as it is
            _log.exception("the store cannot be read again")


def _answered(answer: InferAnswer, ended: Callable[..., RequestEnded]) -> RequestEnded:
    in_time = Outcome.LATE if answer.late else Outcome.OK
    return ended(
        outcome=in_time if answer.mishit is None else Outcome.MISHIT_BEST_EFFORT,
        seconds=answer.measured_ms / 1e3,
        queue_seconds=answer.queue_ms / 1e3,
        variants=answer.decision.offer.variants,
        reason=_reason(answer.mishit),
        prediction_ratio=answer.measured_ms / answer.predicted_ms,
    )


def _reason(mishit: Mishit | None) -> Reason | None:
    return None if mishit is None else mishit.reason


def _since(request: InferRequest) -> float:
    return time.monotonic() - request.received


_ATTEMPTS = 20  # each of them has cost a variant; a combination may have several that are damaged
_OUTCOMES = {
    RefusalKind.BAD_REQUEST: Outcome.REFUSED,
    RefusalKind.NOT_FOUND: Outcome.REFUSED,
    RefusalKind.TOO_LARGE: Outcome.REFUSED,
    RefusalKind.BUSY: Outcome.REFUSED,
    RefusalKind.NOT_READY: Outcome.REFUSED,
    RefusalKind.DRAINING: Outcome.REFUSED,
    RefusalKind.MISHIT: Outcome.MISHIT_REJECTED,
    RefusalKind.INTERNAL: Outcome.FAILED,
}
