"""State topics into SQL: one function for what comes, one for what is gone. Late and doubled records change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Table, and_, delete, or_, select, update

from services.gateway.sql import insert_new, lock, upsert, upsert_all
from services.gateway.tables import (
    artifact_aliases,
    artifact_parents,
    artifact_versions,
    deployments,
    files,
    job_labels,
    job_records,
    jobs,
    submissions,
)
from shared.bus.port import Record
from shared.contracts.artifacts import ArtifactAliasesState, ArtifactKind, ArtifactVersionState, split_ref
from shared.contracts.deployments import DesiredDeployment
from shared.contracts.jobs import JobState, JobStatus


def save_jobs(sql: Connection, records: Sequence[Record]) -> None:
    for record in records:
        if record.message is None:
            forget_job(sql, record.key)
    _save_states(sql, [record.message for record in records if isinstance(record.message, JobState)])
    seen = [record.key for record in records if record.message is not None]
    through = and_(submissions.c.subject.in_(seen), submissions.c.until == "seen", submissions.c.done_at.is_(None))
    lock(sql, submissions, through)
    sql.execute(update(submissions).where(through).values(done_at=datetime.now(UTC)))


def save_job(sql: Connection, state: JobState) -> None:
    """Insert the job, or replace it where this version is newer."""
    _save_states(sql, [state])


def _save_states(sql: Connection, states: Sequence[JobState]) -> None:
    upsert_all(sql, jobs, [_row(state) for state in states], lambda new: jobs.c.version < new.version)
    labels = [
        {"job_id": state.job_id, "label": label, "value": value}
        for state in states
        for label, value in state.spec.labels.items()
    ]
    insert_new(sql, job_labels, labels)


def _row(state: JobState) -> dict[str, Any]:
    current = state.attempts[-1] if state.attempts else None
    return {
        "job_id": state.job_id,
        "tenant": state.tenant,
        "version": state.version,
        "type": state.spec.type,
        "status": state.status.value,
        "priority": state.spec.priority,
        "created_at": state.created_at,
        "dispatched_at": current.dispatched_at if current and state.status is JobStatus.starting else None,
        "placeable": state.placeable,
        "state": state.model_dump(mode="json"),
    }


def forget_job(sql: Connection, job_id: str) -> None:
    """The job was purged: it, its labels and its records go."""
    for table in (jobs, job_labels, job_records):
        sql.execute(delete(table).where(table.c.job_id == job_id))


def sweep_jobs(sql: Connection, seen: set[str], since: datetime) -> None:
    known = sql.execute(select(jobs.c.job_id).where(jobs.c.version > 0, jobs.c.created_at < since)).scalars()
    for job_id in sorted(set(known) - seen):
        forget_job(sql, job_id)


def save_artifacts(sql: Connection, records: Sequence[Record]) -> None:
    for record in records:
        match record.message:
            case ArtifactVersionState() as state:
                save_version(sql, state)
            case ArtifactAliasesState() as state:
                row = {
                    "tenant": state.tenant,
                    "name": state.name,
                    "revision": state.revision,
                    "aliases": state.aliases,
                }
                upsert(sql, artifact_aliases, row, lambda new: artifact_aliases.c.revision < new.revision)
            case None:
                forget_artifact(sql, record.key)


def save_version(sql: Connection, state: ArtifactVersionState) -> None:
    """Versions never change, so that the first one written is the one."""
    identity = {"tenant": state.tenant, "name": state.name, "version": state.version}
    row = {
        **identity,
        "kind": state.kind.value,
        "size_bytes": state.manifest.size_bytes,
        "created_at": state.created_at,
        "job_id": state.job_id,
        "state": state.model_dump(mode="json"),
    }
    insert_new(sql, artifact_versions, [row])
    insert_new(sql, artifact_parents, [{**identity, "parent": parent} for parent in dict.fromkeys(state.parents)])
    if state.kind is ArtifactKind.file:
        _save_file(sql, state)


def _save_file(sql: Connection, state: ArtifactVersionState) -> None:
    """A file is version 1 of the artifact that has its id."""
    facts = state.manifest.metadata
    row = {
        "file_id": state.name,
        "tenant": state.tenant,
        "filename": str(facts.get("filename") or state.name),
        "purpose": str(facts.get("purpose") or "user_data")[:64],
        "bytes": state.manifest.size_bytes,
        "created_at": state.created_at,
        "status": "processed",
        "deleted": False,
    }
    insert_new(sql, files, [row])
    sql.execute(update(files).where(files.c.file_id == state.name).values(status="processed", status_details=None))


def forget_artifact(sql: Connection, key: str) -> None:
    """`tenant/name@3`: that version; `tenant/name`: the aliases."""
    address, version = split_ref(key)
    tenant, _, name = address.partition("/")
    if version is None:
        _delete(sql, artifact_aliases, tenant=tenant, name=name)
        return
    for table in (artifact_versions, artifact_parents):
        _delete(sql, table, tenant=tenant, name=name, version=int(version))
    _delete(sql, files, tenant=tenant, file_id=name)


def sweep_artifacts(sql: Connection, seen: set[str], since: datetime) -> None:
    versions = sql.execute(
        select(artifact_versions.c.tenant, artifact_versions.c.name, artifact_versions.c.version).where(
            artifact_versions.c.created_at < since
        )
    )
    aliases = sql.execute(select(artifact_aliases.c.tenant, artifact_aliases.c.name))
    known = {f"{row.tenant}/{row.name}@{row.version}" for row in versions}
    known |= {f"{row.tenant}/{row.name}" for row in aliases}
    for key in sorted(known - seen):
        forget_artifact(sql, key)


def save_deployments(sql: Connection, records: Sequence[Record]) -> None:
    for record in records:
        if record.message is None:
            tenant, _, name = record.key.partition("/")
            _delete(sql, deployments, tenant=tenant, name=name)
        elif isinstance(record.message, DesiredDeployment):
            save_deployment(sql, record.message)


def save_deployment(sql: Connection, desired: DesiredDeployment) -> None:
    """What the scheduler decided takes the place of what was asked for."""
    row = {
        "tenant": desired.tenant,
        "name": desired.name,
        "version": desired.version,
        "created_at": desired.at,
        "state": desired.model_dump(mode="json"),
        "deleting": False,
    }
    key = and_(deployments.c.tenant == desired.tenant, deployments.c.name == desired.name)
    insert_new(sql, deployments, [row])
    sql.execute(
        update(deployments)
        .where(key, deployments.c.version < desired.version)
        .values(version=desired.version, state=row["state"], wanted=None)
    )


def sweep_deployments(sql: Connection, seen: set[str], since: datetime) -> None:
    stale = or_(deployments.c.version > 0, deployments.c.deleting)
    rows = sql.execute(
        select(deployments.c.tenant, deployments.c.name).where(stale, deployments.c.created_at < since)
    ).all()
    for row in rows:
        if f"{row.tenant}/{row.name}" not in seen:
            _delete(sql, deployments, tenant=row.tenant, name=row.name)


def _delete(sql: Connection, table: Table, **identity: Any) -> None:
    sql.execute(delete(table).where(*(table.c[name] == value for name, value in identity.items())))
