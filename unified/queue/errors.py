"""What can go wrong with a queue; each class says what happened and what to do about it."""

from __future__ import annotations

from unified.errors import UnifiedError


class QueueError(UnifiedError):
    """The root of the queue's errors. ``code`` is short and stable, for programs."""

    code = "queue-error"


class UnknownJobError(QueueError):
    """There is no job of that id, or it is another user's."""

    code = "unknown-job"


class AmbiguousIdError(QueueError):
    """A shortened id fits several jobs; write more of it."""

    code = "ambiguous-id"


class ConflictError(QueueError):
    """What is asked is impossible in the job's present state, which the message names; or an id or token is taken."""

    code = "conflict"


class FencedError(QueueError):
    """A write came too late: the job has passed to another holder. Nothing was changed; stop working on that job."""

    code = "fenced"


class StoreVersionError(QueueError):
    """The database was written by another version of unified than this one can read. Nothing was changed."""

    code = "store-version"


class RefusedError(QueueError):
    """A submission is refused: too large, over a limit, or the disk is full. Nothing was kept of it."""

    code = "refused"


class RootError(QueueError):
    """The root folder cannot be used: not a root, on a network file system, or held by another supervisor."""

    code = "root"
