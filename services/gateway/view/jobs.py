"""Jobs as the scheduler last showed them, and those that it has not shown yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, Engine, and_, exists, func, or_, select

from services.gateway.errors import NotFound
from services.gateway.sql import reading
from services.gateway.tables import job_labels, jobs
from services.gateway.view.paging import Order, Page, page
from services.gateway.view.saving import save_job
from shared.contracts.jobs import TERMINAL, JobState, JobStatus
from shared.db import ping

FINISHED = [status.value for status in TERMINAL]


class Jobs:
    """Queries over the table `jobs`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def get(self, tenant: str, job_id: str) -> JobState:
        """Raises NotFound."""
        with reading(self._engine) as sql:
            state = sql.execute(
                select(jobs.c.state).where(jobs.c.job_id == job_id, jobs.c.tenant == tenant)
            ).scalar_one_or_none()
        if state is None:
            raise NotFound(f"There is no job {job_id!r}.", param="job_id", code="job_not_found")
        return JobState.model_validate(state)

    def list(
        self,
        tenant: str,
        *,
        after: str | None,
        limit: int,
        order: Order = "desc",
        types: Sequence[str] = (),
        statuses: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
    ) -> Page[JobState]:
        query = select(jobs.c.state).where(jobs.c.tenant == tenant)
        if types:
            query = query.where(jobs.c.type.in_(types))
        if statuses:
            query = query.where(jobs.c.status.in_(statuses))
        for label, value in (labels or {}).items():
            has = and_(job_labels.c.job_id == jobs.c.job_id, job_labels.c.label == label, job_labels.c.value == value)
            query = query.where(exists().where(has))
        with reading(self._engine) as sql:
            found = page(sql, query, jobs.c.job_id, after=after, limit=limit, order=order)
        return Page([JobState.model_validate(row.state) for row in found.items], found.has_more)

    def add_submitted(self, sql: Connection, state: JobState) -> None:
        """Show a job from the moment that its submission is committed. `state` has version 0."""
        save_job(sql, state)

    def queue_position(self, state: JobState) -> int | None:
        """How many jobs start no later than this one, itself included; None when it does not wait for its turn.

        One that waits for what no node has stands in nobody's way, and has no place.
        """
        if state.status is not JobStatus.queued or not state.placeable:
            return None
        priority = state.spec.priority
        sooner = or_(
            jobs.c.priority > priority,
            and_(jobs.c.priority == priority, jobs.c.created_at < state.created_at),
        )
        waiting = and_(jobs.c.status == JobStatus.queued.value, jobs.c.placeable)
        query = select(func.count()).select_from(jobs).where(waiting, sooner)
        with reading(self._engine) as sql:
            return (sql.execute(query).scalar() or 0) + 1

    def unfinished(self, tenant: str) -> int:
        query = select(func.count()).select_from(jobs)
        with reading(self._engine) as sql:
            return sql.execute(query.where(jobs.c.tenant == tenant, jobs.c.status.not_in(FINISHED))).scalar() or 0

    def ping(self) -> None:
        """Raises DatabaseAway."""
        ping(self._engine)

    def oldest_unaccepted(self) -> datetime | None:
        """Since when the longest-waiting dispatched attempt has had no accepted run."""
        query = select(func.min(jobs.c.dispatched_at)).where(jobs.c.status == JobStatus.starting.value)
        with reading(self._engine) as sql:
            return sql.execute(query).scalar()
