"""The tables of the store. A change here needs a step in ``migrations.py`` and a higher ``VERSION``.

Times called ``*_time``, ``time``, ``not_before``, ``started``, ``ended`` and ``last_ok`` are wall clock. ``spec``, ``metrics``,
``admission`` and ``state`` of a policy are JSON as text, which every database keeps as it is (a JSON type of PostgreSQL would
refuse a metric that is not a number).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

#: Of the tables below.
VERSION = 2

METADATA = MetaData()

#: Compared by code point, so that a range of ids is the ids with a prefix.
_ID = Text().with_variant(Text(collation="C"), "postgresql")


def _job_column(*, is_key: bool = False) -> Column[str]:
    return Column("job", _ID, ForeignKey("job.id", ondelete="CASCADE"), primary_key=is_key, nullable=False)


def _sequence() -> Column[int]:
    return Column("sequence", Integer, primary_key=True, autoincrement=True)


JOB = Table(
    "job",
    METADATA,
    Column("id", _ID, primary_key=True),
    Column("name", Text, nullable=False),
    Column("user", Text, nullable=False),
    Column("spec", Text, nullable=False),
    Column("content_sha256", Text, nullable=False),
    Column("client_token", Text),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("weight", Double, nullable=False),
    Column("deadline_seconds", Double),
    Column("max_retries", Integer, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("submit_time", Double, nullable=False),
    Column("not_before", Double),
    Column("epoch", Integer, nullable=False),
    Column("holder", Text),
    Column("lease_expires", Double),
    Column("boot_id", Text),
    Column("slot", Integer),
    Column("num_threads", Integer),
    Column("steps_done", BigInteger, nullable=False),
    Column("steps_total", BigInteger),
    Column("loss", Double),
    Column("metrics", Text, nullable=False),
    Column("step_seconds", Double),
    Column("memory_bytes", BigInteger),
    Column("training_seconds", Double, nullable=False),
    Column("started_time", Double),
    Column("finished_time", Double),
    Column("num_job_failures", Integer, nullable=False),
    Column("num_infra_failures", Integer, nullable=False),
    Column("num_blames", Integer, nullable=False),
    Column("is_alone", Boolean, nullable=False),
    Column("last_fault", Text),
    Column("admission", Text),
    Column("result_path", Text),
    # Whether there is an admission, in a column of its own so that an index can serve the two ways to look for queued jobs.
    Column("is_checked", Boolean, nullable=False, server_default=text("false")),
    UniqueConstraint("user", "client_token", name="job_client_token"),
    Index("job_by_time", "submit_time", "id"),
    Index("job_by_user", "user", "submit_time", "id"),
    Index("job_by_state", "state", "submit_time", "id"),
    Index("job_by_user_and_state", "user", "state", "submit_time", "id"),
    Index("job_by_holder", "holder"),
    Index("job_bytes", "user", "num_bytes"),
    Index("job_waiting", "state", "is_checked", "priority", "submit_time", "id"),
)

TRANSITION = Table(
    "transition",
    METADATA,
    _sequence(),
    _job_column(),
    Column("old", Text),
    Column("new", Text, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("time", Double, nullable=False),
    Column("reason", Text, nullable=False),
    Column("by", Text, nullable=False),
    Index("transition_by_job", "job", "sequence"),
    sqlite_autoincrement=True,
)

CHECKPOINT = Table(
    "checkpoint",
    METADATA,
    _job_column(is_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("path", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("time", Double, nullable=False),
)

COMMAND = Table(
    "command",
    METADATA,
    _sequence(),
    _job_column(),
    Column("verb", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("time", Double, nullable=False),
    Column("outcome", Text),
    Index("command_by_job", "job"),
    Index("command_pending", "sequence", sqlite_where=text("outcome IS NULL"), postgresql_where=text("outcome IS NULL")),
    sqlite_autoincrement=True,
)

WORKER = Table(
    "worker",
    METADATA,
    _sequence(),
    Column("slot", Integer, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started", Double, nullable=False),
    Column("ended", Double),
    Column("how", Text),
    sqlite_autoincrement=True,
)

#: Two jobs that may not share a slot; ``first`` < ``second``.
BAN = Table(
    "ban",
    METADATA,
    Column("first", _ID, ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    Column("second", _ID, ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
)

POLICY = Table(
    "policy_state",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("state", Text, nullable=False),
)

USAGE = Table(
    "usage",
    METADATA,
    Column("user", Text, primary_key=True),
    Column("slot_seconds", Double, nullable=False),
    Column("byte_seconds", Double, nullable=False),
)

TICK = Table(
    "tick",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("last_ok", Double, nullable=False),
)

META = Table(
    "meta",
    METADATA,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
