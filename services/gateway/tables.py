"""The gateway's SQL tables, shared by all gateways. `migrations/` builds the same ones.

Texts have no limits here: what others say on the bus is kept as it comes, whatever the database.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    true,
)

metadata = MetaData()


class Moment(TypeDecorator[datetime]):
    """A moment in UTC. SQLite forgets zones, so that they are put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value and (value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC))


api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("key_sha256", String, nullable=False, unique=True),
    Column("tenant", String, nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    # {"max_queued_jobs": …, "max_storage_bytes": …}: what differs from the settings.
    Column("limits", JSON, nullable=False),
)

# Every command that was answered with a 2xx, from its acceptance until it is known to have had its effect.
submissions = Table(
    "submissions",
    metadata,
    Column("command_id", String, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("idempotency_key", String),
    Column("operation", Text, nullable=False),
    Column("body_hash", String, nullable=False),
    # It came as an SDK's retry, and the first try may still be on its way.
    Column("retried", Boolean, nullable=False, server_default=false()),
    # What it is about: the key on the bus. Commands of one subject go out in order.
    Column("subject", String, nullable=False),
    # What the client asked to make or change: a job, a file, a deployment.
    Column("resource_id", String, nullable=False),
    Column("topic", String, nullable=False),
    Column("command", LargeBinary, nullable=False),
    # When it is through: `published`, `seen` on a state topic, or `answered` by the registry.
    Column("until", String, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("next_at", Moment, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("published_at", Moment),
    Column("done_at", Moment),
    # Why it was rejected, if it was.
    Column("rejected", Text),
    UniqueConstraint("tenant", "idempotency_key", name="uq_submissions_key"),
    Index("ix_submissions_due", "done_at", "next_at"),
    Index("ix_submissions_unpublished", "published_at"),
    Index("ix_submissions_subject", "subject", "created_at"),
    Index("ix_submissions_body", "tenant", "body_hash", "created_at"),
)

# One row a job. Version 0 is a submission that the scheduler has not shown on `jobs.state` yet.
jobs = Table(
    "jobs",
    metadata,
    Column("job_id", String, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("type", String, nullable=False),
    Column("status", String, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("dispatched_at", Moment),
    Column("placeable", Boolean, nullable=False, server_default=true()),
    Column("state", JSON, nullable=False),
    Index("ix_jobs_list", "tenant", "job_id"),
    Index("ix_jobs_status", "status", "tenant"),
)

job_labels = Table(
    "job_labels",
    metadata,
    Column("job_id", String, nullable=False),
    Column("label", String, nullable=False),
    Column("value", Text, nullable=False),
    PrimaryKeyConstraint("job_id", "label"),
)

# Events, log lines and progress, as they lie on the bus: a record that comes twice has the same position.
job_records = Table(
    "job_records",
    metadata,
    Column("topic", String, nullable=False),
    Column("part", Integer, nullable=False),
    Column("pos", BigInteger, nullable=False),
    Column("job_id", String, nullable=False),
    Column("type", String, nullable=False),
    Column("attempt", Integer),
    Column("rank", Integer),
    Column("run_id", String),
    Column("at", Moment, nullable=False),
    Column("body", JSON, nullable=False),
    PrimaryKeyConstraint("topic", "part", "pos"),
    Index("ix_job_records_job", "job_id", "topic", "type", "part", "pos"),
    Index("ix_job_records_at", "at"),
)

artifact_versions = Table(
    "artifact_versions",
    metadata,
    Column("tenant", String, nullable=False),
    Column("name", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("kind", String, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("job_id", String),
    Column("state", JSON, nullable=False),
    PrimaryKeyConstraint("tenant", "name", "version"),
    Index("ix_artifact_versions_kind", "tenant", "kind", "created_at"),
)

# Which version was made from which ref: lineage, in both directions.
artifact_parents = Table(
    "artifact_parents",
    metadata,
    Column("tenant", String, nullable=False),
    Column("name", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("parent", String, nullable=False),
    PrimaryKeyConstraint("tenant", "name", "version", "parent"),
    Index("ix_artifact_parents_parent", "tenant", "parent"),
)

artifact_aliases = Table(
    "artifact_aliases",
    metadata,
    Column("tenant", String, nullable=False),
    Column("name", String, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("aliases", JSON, nullable=False),
    PrimaryKeyConstraint("tenant", "name"),
)

# Uploads. `uploaded`: the registry has not answered yet; `processed`: it is a version; `error`: it was rejected.
files = Table(
    "files",
    metadata,
    Column("file_id", String, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("status", String, nullable=False),
    Column("status_details", Text),
    Column("deleted", Boolean, nullable=False),
    Index("ix_files_list", "tenant", "file_id"),
)

# Version 0: asked for, and not on `deployments.desired` yet. `wanted` is the spec that was asked for last.
deployments = Table(
    "deployments",
    metadata,
    Column("tenant", String, nullable=False),
    Column("name", String, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("wanted", JSON),
    Column("state", JSON),
    Column("deleting", Boolean, nullable=False),
    PrimaryKeyConstraint("tenant", "name"),
)
