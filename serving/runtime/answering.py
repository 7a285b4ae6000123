"""From a checked request to outputs: decide, run the variants, word what went wrong."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from serving.queries import Decision, Mishit, Offer, Reason
from serving.records import Family
from serving.runtime.admission import blame_values, find_version
from serving.runtime.batching import QueueFull, order_of
from serving.runtime.deployment import Deployment, Unusable
from serving.runtime.executor import Call, Executor, Finished
from serving.runtime.overhead import Overhead
from serving.runtime.requests import InferAnswer, InferRequest, RefusalKind, Refused
from serving.runtime.running import NotFinite, Outputs, Ran
from serving.runtime.snapshot import Servable, Snapshot
from serving.selection import State, select
from serving.table import Table

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """A request, what was decided about it, and where.

    Attributes:
        request: As it came.
        family: Its family.
        rows: Its samples.
        decision: What answers it.
        snapshot: In which the decision holds.
        decided: Reading of the clock.
        wait: Seconds that were predicted until the first variant could begin.
        overhead: Seconds that were predicted for each variant beside its inference.
    """

    request: InferRequest
    family: Family
    rows: int
    decision: Decision
    snapshot: Snapshot
    decided: float
    wait: float
    overhead: float

    @property
    def deadline(self) -> float:
        """Seconds of the clock by which to answer, infinite without a limit."""
        return self.request.received + self.request.query.limit_ms / 1e3


class Answering:
    """Decides about requests and runs what is decided. Used in the event loop's thread only."""

    def __init__(self, deployment: Deployment, executor: Executor, *, quantile: str) -> None:
        self._deployment = deployment
        self._executor = executor
        self._quantile = quantile
        self._overhead = Overhead()

    def decide(self, request: InferRequest, family: Family, rows: int) -> Plan | Mishit:
        """Return what answers a request now, by the profiles, what is on the device and what waits for it.

        What has passed since the request was received counts against its limit.
        """
        snapshot, query = self._deployment.snapshot, request.query
        table = snapshot.tables[family.name]
        now = time.monotonic()
        deadline = request.received + query.limit_ms / 1e3
        wait = self._executor.wait_seconds(order_of(query.priority, deadline, now))
        overhead = self._overhead.seconds(now)
        state = self._deployment.state(table).waiting((now - request.received + wait) * 1e3, overhead * 1e3)
        if request.version is not None:
            servable = find_version(snapshot, request)
            decision = Decision(offer=_offer_of(servable, table, request, state, rows))
        else:
            found = select(query, table, state, rows=rows, quantile=self._quantile)
            if isinstance(found, Mishit):
                return found
            decision = found
        return Plan(
            request=request,
            family=family,
            rows=rows,
            decision=decision,
            snapshot=snapshot,
            decided=now,
            wait=wait,
            overhead=overhead,
        )

    async def run(self, plan: Plan) -> InferAnswer:
        """Run the variants that were decided on, one after the other, and answer.

        Raises:
            Refused: If too much waits, or a variant fails.
            Unusable: If a variant cannot be loaded; decide again.
        """
        offer = plan.decision.offer
        servables = [plan.snapshot.servables[variant] for variant in offer.variants]
        seconds = [servable.seconds(plan.rows) for servable in servables]
        outputs: dict[str, Tensor] = {}
        queued, batch_rows = 0.0, 0
        began, wait = plan.decided, plan.wait
        for place, (servable, tasks) in enumerate(zip(servables, offer.tasks, strict=True)):
            call, found = await self._run_one(servable, plan, plan.deadline - sum(seconds[place + 1 :]))
            now = time.monotonic()
            self._overhead.add(now - began - call.loading - wait - seconds[place], now)
            began, wait = now, 0.0
            outputs |= {task: found[task] for task in tasks}
            queued += call.started - call.arrived
            batch_rows = max(batch_rows, call.batch_rows)
        measured_ms = (time.monotonic() - plan.request.received) * 1e3
        return InferAnswer(
            outputs={task: outputs[task] for task in plan.family.task_names if task in outputs},
            decision=plan.decision,
            queue_ms=queued * 1e3,
            measured_ms=measured_ms,
            batch_rows=batch_rows,
            late=measured_ms > plan.request.query.limit_ms,
            id=plan.request.id,
        )

    def deliver(self, finished: Finished) -> None:
        """Hand out what became of the calls of a batch."""
        for call, result in zip(finished.calls, finished.ran, strict=True):
            self._deployment.release(call.variant)
            if not call.done.done():  # its client may have gone
                call.done.set_result(result)

    async def _run_one(self, servable: Servable, plan: Plan, deadline: float) -> tuple[Call, Outputs]:
        for _ in range(2):
            before = time.monotonic()
            resident = await self._deployment.acquire(servable)
            call = Call(
                key=(servable.id, *((tensor.dtype, tensor.shape[1:]) for tensor in plan.request.inputs)),
                timed=servable,
                variant=servable.id,
                rows=plan.rows,
                arrived=time.monotonic(),
                loading=time.monotonic() - before,
                deadline=deadline - plan.overhead,
                priority=plan.request.query.priority,
                module=resident.module,
                inputs=plan.request.inputs,
                done=asyncio.get_running_loop().create_future(),
            )
            ran = await self._run_call(call)
            if ran.outputs is not None:
                return call, ran.outputs
            if not isinstance(ran.error, torch.OutOfMemoryError):
                raise _refusal(servable, plan, ran.error)
            self._deployment.make_room(servable.id)
        self._deployment.quarantine(servable, "the device has no memory to run it, even after others have left")
        raise Unusable(f"variant {servable.name!r} ({servable.id}): no memory on the device")

    async def _run_call(self, call: Call) -> Ran:
        """Run a call; its variant is released when it is delivered, or here if it never comes to run."""
        try:
            self._executor.submit(call)
        except QueueFull:
            self._deployment.release(call.variant)
            seconds = max(1, math.ceil(self._executor.wait_seconds(call.order)))
            raise Refused(
                RefusalKind.BUSY,
                "queue_full",
                f"{self._executor.waiting_rows} rows wait already; try again in {seconds} s",
                retry_after=seconds,
            ) from None
        try:
            return await call.done
        except asyncio.CancelledError:
            if self._executor.discard(call):
                self._deployment.release(call.variant)
            raise


def mishit_refusal(mishit: Mishit) -> Refused:
    """Return the words for a query that nothing satisfies."""
    text = mishit.reason.words
    if mishit.closest:
        nearest = mishit.closest[0]
        scores = ", ".join(f"{task} {score:.3f}" for task, score in nearest.accuracy.items())
        text += f"; the closest, {nearest.version}, would take {nearest.predicted_ms:.1f} ms at accuracy {scores}"
    return Refused(
        RefusalKind.MISHIT, f"mishit_{mishit.reason}", f"{text}; {_REMEDIES.get(mishit.reason, _REMEDY)}", mishit=mishit
    )


def internal_refusal(what: str, error: BaseException | None) -> Refused:
    """Log a failure of ours under a short id, and return the words that give a client that id and no more."""
    short = secrets.token_hex(4)
    _log.error("%s [%s]", what, short, exc_info=error)
    return Refused(RefusalKind.INTERNAL, "internal", f"{what}; the server's log has more under {short}")


_REMEDY = "loosen the limit or the floor, or ask with on_mishit=best_effort"
_REMEDIES = {Reason.TASKS: "ask for fewer tasks, or build and profile variants for all of them"}


def _refusal(servable: Servable, plan: Plan, error: Exception | None) -> Refused:
    if isinstance(error, NotFinite):
        problem = blame_values(plan.family, plan.request.inputs, servable.example)
        if problem is not None:
            return Refused(RefusalKind.BAD_REQUEST, "bad_values", problem)
    if isinstance(error, IndexError):
        return Refused(RefusalKind.BAD_REQUEST, "out_of_range", f"an input value is outside the network's range: {error}")
    return error if isinstance(error, Refused) else internal_refusal(f"variant {servable.name!r} failed on this input", error)


def _offer_of(servable: Servable, table: Table, request: InferRequest, state: State, rows: int) -> Offer:
    tasks = tuple(task for task in table.family.task_names if task in request.query.tasks)
    place = table.index[servable.id]
    load_ms = float(state.load_ms[place])
    infer_ms = servable.seconds(rows) * 1e3 + state.call_ms
    return Offer(
        variants=(servable.id,),
        tasks=(tasks,),
        predicted_ms=state.wait_ms + load_ms + infer_ms,
        load_ms=load_ms,
        infer_ms=infer_ms,
        accuracy={task: float(table.scores[place, table.family.task_names.index(task)]) for task in tasks},
    )
