"""What only the gateway knows about a restore of its tables. `shared.backup` calls it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, bindparam, delete, func, select, update

from services.gateway.tables import (
    artifact_aliases,
    artifact_parents,
    artifact_versions,
    deployments,
    files,
    job_records,
    jobs,
    submissions,
)
from services.gateway.view.saving import forget_job
from shared.backup.system import Restored
from shared.contracts.jobs import TERMINAL, JobTransitioned

ON_THE_BUS = timedelta(days=7)
"""How long before the backup a command may have been accepted that its consumer had not taken from the bus by then."""


def settle(sql: Connection, restored: Restored) -> None:
    """Accepted is accepted: what scheduler and registry do not know goes out again. The view is read anew from the
    bus, except for the history of the jobs, which is only here."""
    reopened = _reopen_submissions(sql, restored)
    _take_back_endings(sql, restored.unfinished)
    _move_records_before_the_bus(sql)
    _forget_the_view(sql, restored.jobs | reopened)


def _reopen_submissions(sql: Connection, restored: Restored) -> set[str]:
    """What these commands are about."""
    now = datetime.now(UTC)
    sql.execute(
        update(submissions).where(submissions.c.done_at.is_(None)).values(published_at=None, next_at=now, tries=0)
    )
    since = datetime.fromtimestamp(restored.taken_at, UTC) - ON_THE_BUS
    accepted = submissions.c.rejected.is_(None) & (submissions.c.created_at > since)
    rows = sql.execute(select(submissions.c.command_id, submissions.c.resource_id).where(accepted)).all()
    unknown = [row for row in rows if row.command_id not in restored.handled]
    if unknown:
        again = update(submissions).where(submissions.c.command_id == bindparam("id"))
        again = again.values(done_at=None, published_at=None, next_at=now, tries=0)
        sql.execute(again, [{"id": row.command_id} for row in unknown])
        again = update(files).where(files.c.file_id == bindparam("id"), files.c.status == "processed")
        sql.execute(again.values(status="uploaded"), [{"id": row.resource_id} for row in unknown])
    return {row.resource_id for row in unknown}


def _take_back_endings(sql: Connection, unfinished: Collection[str]) -> None:
    """A job that ended while the backup was taken may go on after it: readers of its events must not stop before."""
    query = select(job_records).where(job_records.c.type == JobTransitioned.__name__)
    for row in sql.execute(query).all():
        if row.job_id in unfinished and row.body.get("after") in TERMINAL:
            where = row.topic, row.part, row.pos
            mine = zip((job_records.c.topic, job_records.c.part, job_records.c.pos), where, strict=True)
            sql.execute(delete(job_records).where(*(column == value for column, value in mine)))


def _move_records_before_the_bus(sql: Connection) -> None:
    """A new bus counts from zero: its records must not be taken for those that had their positions on the old one.

    They keep their order, and end with position -1. By way of a partition that nobody has, so that none meets another.
    """
    place = func.row_number().over(partition_by=job_records.c.topic, order_by=(job_records.c.part, job_records.c.pos))
    columns = job_records.c.topic, job_records.c.part, job_records.c.pos, place.label("place")
    placed = select(*columns).subquery()
    same = (
        job_records.c.topic == placed.c.topic,
        job_records.c.part == placed.c.part,
        job_records.c.pos == placed.c.pos,
    )
    sql.execute(update(job_records).where(*same).values(part=-1, pos=placed.c.place))
    counts = sql.execute(select(job_records.c.topic, func.count()).group_by(job_records.c.topic)).all()
    for topic, count in counts:
        before = update(job_records).where(job_records.c.topic == topic)
        sql.execute(before.values(part=0, pos=job_records.c.pos - count - 1))


def _forget_the_view(sql: Connection, known: Collection[str]) -> None:
    """Jobs stay, as if the scheduler had not shown them yet: any version of it is news, and a bus that does not hold
    them yet is no sign that they were purged."""
    for table in (artifact_versions, artifact_parents, artifact_aliases):
        sql.execute(delete(table))
    sql.execute(delete(deployments).where(deployments.c.version > 0))
    sql.execute(update(jobs).values(version=0))
    for job_id in _missing(sql.scalars(select(jobs.c.job_id)), known):
        forget_job(sql, job_id)


def _missing(there: Iterable[str], known: Collection[str]) -> list[str]:
    return [each for each in there if each not in known]
