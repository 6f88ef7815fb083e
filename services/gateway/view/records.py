"""Events, logs and progress of a job, of accepted runs only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from sqlalchemy import ColumnElement, Engine, Row, and_, func, or_, select

from services.gateway.sql import reading
from services.gateway.tables import job_records
from services.gateway.view.paging import Page
from shared.bus.port import Position
from shared.contracts.jobs import TERMINAL, JobState, JobTransitioned, LogLines, Progress
from shared.contracts.topics import JOBS_EVENTS, JOBS_LOGS

CHUNK = 200
MOST_TOLD = 5000


@dataclass(frozen=True)
class JobRecord:
    """One message about a job, and where it lies on the bus."""

    position: Position
    type: str
    at: datetime
    attempt: int | None
    rank: int | None
    run_id: str | None
    body: dict[str, Any]

    @property
    def ends_the_job(self) -> bool:
        return self.type == JobTransitioned.__name__ and self.body.get("after") in TERMINAL


class Shown(Enum):
    """Whether a record is a reader's to see."""

    yes = "yes"
    no = "no"
    not_decided = "not decided"
    """The scheduler has not said yet which run counts: it, and what comes after it, waits."""


def shown(record: JobRecord, state: JobState) -> Shown:
    """By the fence: only what the accepted run of an attempt and rank says is shown."""
    if record.run_id is None or record.attempt is None:
        return Shown.yes
    attempt = next((known for known in state.attempts if known.attempt == record.attempt), None)
    if attempt is None:
        ahead = record.attempt > state.attempt and not state.status.terminal
        return Shown.not_decided if ahead else Shown.no
    accepted = attempt.runs.get(record.rank or 0)
    if accepted is None:
        return Shown.no if attempt.ended_at or state.status.terminal else Shown.not_decided
    return Shown.yes if accepted == record.run_id else Shown.no


class JobRecords:
    """Queries over the table `job_records`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def events(self, state: JobState, after: Position | None, limit: int) -> Page[JobRecord]:
        return self._page(state, job_records.c.topic == JOBS_EVENTS.name, after, limit)

    def logs(self, state: JobState, after: Position | None, limit: int) -> Page[JobRecord]:
        return self._page(state, _of(LogLines.__name__), after, limit)

    def progress(self, state: JobState, after: Position | None, limit: int) -> Page[JobRecord]:
        return self._page(state, _of(Progress.__name__), after, limit)

    def latest_progress(self, state: JobState) -> JobRecord | None:
        """What the job's first rank reported last."""
        mine = (job_records.c.job_id == state.job_id) & _of(Progress.__name__) & (job_records.c.rank == 0)
        query = select(job_records).where(mine).order_by(job_records.c.part.desc(), job_records.c.pos.desc())
        with reading(self._engine) as sql:
            rows = (_record(row) for row in sql.execute(query.limit(CHUNK)))
            return next((record for record in rows if shown(record, state) is Shown.yes), None)

    def told(self, state: JobState, types: Sequence[str]) -> list[JobRecord]:
        """The newest MOST_TOLD of these types that a reader may see, oldest first, over all topics."""
        mine = (job_records.c.job_id == state.job_id) & job_records.c.type.in_(types)
        words = job_records.c.at, job_records.c.topic, job_records.c.part, job_records.c.pos
        newest_first = select(job_records).where(mine).order_by(*(word.desc() for word in words)).limit(MOST_TOLD)
        with reading(self._engine) as sql:
            records = [_record(row) for row in sql.execute(newest_first)]
        return [record for record in reversed(records) if shown(record, state) is Shown.yes]

    def end(self, state: JobState) -> Position | None:
        """Where the event lies that ended the job."""
        mine = (job_records.c.job_id == state.job_id) & (job_records.c.type == JobTransitioned.__name__)
        with reading(self._engine) as sql:
            records = [_record(row) for row in sql.execute(select(job_records).where(mine))]
        return max((record.position for record in records if record.ends_the_job), default=None)

    def count(self) -> int:
        with reading(self._engine) as sql:
            return sql.execute(select(func.count()).select_from(job_records)).scalar() or 0

    def _page(self, state: JobState, kind: ColumnElement[bool], after: Position | None, limit: int) -> Page[JobRecord]:
        found: list[JobRecord] = []
        for record in self._from(state.job_id, kind, after):
            verdict = shown(record, state)
            if verdict is Shown.not_decided:
                break
            if verdict is Shown.yes:
                found.append(record)
            if len(found) > limit:
                break
        return Page(found[:limit], len(found) > limit)

    def _from(self, job_id: str, kind: ColumnElement[bool], after: Position | None) -> Iterator[JobRecord]:
        """The records after a position, in order, read by chunks."""
        query = select(job_records).where(job_records.c.job_id == job_id, kind)
        query = query.order_by(job_records.c.part, job_records.c.pos).limit(CHUNK)
        while True:
            with reading(self._engine) as sql:
                rows = sql.execute(query.where(_later(after)) if after else query).all()
            yield from (_record(row) for row in rows)
            if len(rows) < CHUNK:
                return
            after = Position(rows[-1].part, rows[-1].pos)


def _of(kind: str) -> ColumnElement[bool]:
    return and_(job_records.c.topic == JOBS_LOGS.name, job_records.c.type == kind)


def _later(after: Position) -> ColumnElement[bool]:
    part, pos = job_records.c.part, job_records.c.pos
    return or_(part > after.partition, and_(part == after.partition, pos > after.offset))


def _record(row: Row[Any]) -> JobRecord:
    return JobRecord(Position(row.part, row.pos), row.type, row.at, row.attempt, row.rank, row.run_id, row.body)
