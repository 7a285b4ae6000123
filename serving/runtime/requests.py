"""A request to serve, its answer, and the ways of refusing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

from serving.queries import Decision, Mishit, Query


class RefusalKind(StrEnum):
    """Whose fault it is that there is no answer, and so what a client should do."""

    BAD_REQUEST = "bad_request"  #: the request itself: change it
    NOT_FOUND = "not_found"  #: no such family or version
    MISHIT = "mishit"  #: nothing satisfies the query: loosen it
    TOO_LARGE = "too_large"  #: more rows than one request may have: split it
    BUSY = "busy"  #: too much waits: try again
    NOT_READY = "not_ready"  #: the service is starting: try again
    DRAINING = "draining"  #: the service is stopping: try another one
    INTERNAL = "internal"  #: our fault; the log has the trace under the id in the message


class Refused(Exception):  # noqa: N818 - mostly not an error, and the word that the protocol's statuses go by
    """A request that gets no answer.

    Attributes:
        kind: Whose fault.
        code: Short, for programs: ``unknown_task``, ``queue_full``.
        message: What was expected, what came, what to do.
        retry_after: Seconds after which to try again, None if that is no use.
        mishit: What was decided, if nothing satisfies the query.
    """

    def __init__(
        self,
        kind: RefusalKind,
        code: str,
        message: str,
        *,
        retry_after: float | None = None,
        mishit: Mishit | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.kind = kind
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.mishit = mishit


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InferRequest:
    """What one client sends.

    Attributes:
        family: Name of the family.
        query: The tasks and their limits.
        inputs: In the family's order, each ``(rows, ...)`` in the dtype and shape that the family says, on the CPU.
        received: Reading of ``time.monotonic()`` when the whole body was there: the latency limit counts from then.
        version: Id of the variant that must answer, None to have it selected. With a version there is no selection: its
            tasks must cover the query's, and limits only decide whether the answer is late.
        id: Of the client, handed back.
    """

    family: str
    query: Query
    inputs: tuple[Tensor, ...]
    received: float
    version: str | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InferAnswer:
    """What one client gets.

    Attributes:
        outputs: By task, in the family's order: ``(rows, ...)`` on the CPU, finite.
        decision: The variants and what was predicted; its ``mishit`` is set on an answer by best effort.
        queue_ms: Waiting for the device, all variants together.
        measured_ms: From ``received`` to the answer.
        batch_rows: Samples in the batch that it ran in; of several variants, the largest.
        late: Whether ``measured_ms`` exceeds the query's limit.
        id: Of the request.
    """

    outputs: Mapping[str, Tensor]
    decision: Decision
    queue_ms: float
    measured_ms: float
    batch_rows: int
    late: bool
    id: str | None = None

    @property
    def version(self) -> str:
        """Id of the variant that answered, several joined by ``+``."""
        return self.decision.offer.version

    @property
    def predicted_ms(self) -> float:
        """What selection expected ``measured_ms`` to be."""
        return self.decision.offer.predicted_ms

    @property
    def mishit(self) -> Mishit | None:
        """Set if the query's limits could not be met and it asked for best effort."""
        return self.decision.mishit
