"""The scheduler's SQL tables. A row is a JSON document, beside it the columns that queries need.

Times in columns are seconds since the epoch, so that they compare alike in every database.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

metadata = MetaData()

Number = BigInteger().with_variant(Integer, "sqlite")
"""64 bits: SQLite's own numbers have them under another name."""

jobs = Table(
    "jobs",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("status", String, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("shape", String, nullable=False),
    Column("queued_at", Float, nullable=False),
    Column("not_before", Float),
    Column("finished_at", Float),
    Column("reason", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("desired_version", Integer, nullable=False),
    Column("document", Text, nullable=False),
    # The queue: its lines are read from the index alone, and each line in order.
    Index("jobs_in_line", "status", "tenant", "priority", "shape", "queued_at"),
    Index("jobs_due", "status", "not_before"),
    Index("jobs_finished", "finished_at"),
)

deployments = Table(
    "deployments",
    metadata,
    Column("key", String, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("document", Text, nullable=False),
)

handled = Table(
    "handled_commands",
    metadata,
    Column("id", String, primary_key=True),
    Column("at", Float, nullable=False, index=True),
)

early_cancels = Table(
    "early_cancels",
    metadata,
    Column("job_id", String, primary_key=True),
    Column("at", Float, nullable=False, index=True),
)
"""Cancels that came before their submit."""

dirty = Table(
    "outbox_states",
    metadata,
    Column("topic", String, nullable=False),
    Column("key", String, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("since", Float, nullable=False),
    PrimaryKeyConstraint("topic", "key"),
    Index("outbox_states_since", "since"),
)
"""Keys of compacted topics whose current state is to be published. `revision` grows when one changes once more."""

outgoing = Table(
    "outbox_messages",
    metadata,
    Column("seq", Number, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("topic", String, nullable=False),
    Column("key", String, nullable=False),
    Column("since", Float, nullable=False),
    Column("raw", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
"""Commands and events to be published as they are, in the order of `seq` for each key."""

leader = Table(
    "leader",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("writes", BigInteger, nullable=False),
)
"""One row. Its epoch grows with every takeover; every transaction begins by touching it (`WHERE epoch = mine`)."""
