"""The truth in SQL: read it, decide, and write everything that follows in one transaction.

A `Work` is one decision. It reads at once, keeps what changes in memory, and on a clean exit writes jobs, handled
commands and outbox together; the transaction begins by touching the leader's row, so that a scheduler that was deposed
writes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Engine, Select, Table, delete, func, select, update

from services.scheduler.deployments import Deployment
from services.scheduler.domain import ACTIVE, Job
from services.scheduler.order import Line, line_of
from services.scheduler.tables import deployments, dirty, early_cancels, handled, jobs, leader, outgoing
from shared.contracts.jobs import TERMINAL, JobStatus
from shared.contracts.message import Message
from shared.contracts.topics import Topic
from shared.db import insert_into, reading

CHUNK = 500
"""Values in one `IN (…)`."""


class Deposed(Exception):
    """Another scheduler leads now: this one must not write."""


class Truth:
    """The scheduler's database, as the leader of `epoch`."""

    def __init__(self, engine: Engine, epoch: int) -> None:
        self.engine = engine
        self.epoch = epoch

    @contextmanager
    def work(self) -> Iterator[Work]:
        """One decision. Nothing is written when the block raises. Raises Deposed."""
        with self.reading() as connection:
            work = Work(connection)
            yield work
        if work.staged:
            with self.writing() as connection:
                work.write(connection)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with reading(self.engine) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that only the leader may make. Raises Deposed."""
        mine = update(leader).where(leader.c.epoch == self.epoch).values(writes=leader.c.writes + 1)
        with self.engine.begin() as connection:
            if connection.execute(mine).rowcount != 1:
                raise Deposed(f"another scheduler has taken over from epoch {self.epoch}")
            yield connection


class Work:
    """What one decision reads and changes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._jobs: dict[str, Job] = {}
        self._deployments: dict[str, Deployment] = {}
        self._handled: dict[str, datetime] = {}
        self._early_cancels: dict[str, datetime] = {}
        self._forgotten: list[str] = []
        self._dirty: dict[tuple[str, str], datetime] = {}
        self._outgoing: list[dict[str, Any]] = []

    # ── Jobs ──

    def jobs(self, ids: Collection[str]) -> dict[str, Job]:
        """Those that exist, as this decision has left them so far."""
        missing = [job_id for job_id in ids if job_id not in self._jobs]
        found = {job.id: job for part in chunks(missing) for job in self._read(jobs_where(jobs.c.id.in_(part)))}
        return {job_id: job for job_id in ids if (job := self._jobs.get(job_id) or found.get(job_id))}

    def put(self, job: Job) -> None:
        self._jobs[job.id] = job

    def active(self) -> list[Job]:
        """Jobs with an attempt that holds places."""
        return active_jobs(self._connection)

    def due(self, now: datetime, limit: int = 500) -> list[Job]:
        """Jobs whose backoff is over, or whose publication has waited long enough for an answer."""
        timed = jobs.c.status.in_([JobStatus.backoff, JobStatus.publishing])
        due = jobs_where(timed, jobs.c.not_before <= now.timestamp())
        return self._read(due.order_by(jobs.c.not_before).limit(limit))

    def lines(self) -> list[Line]:
        columns = select(jobs.c.tenant, jobs.c.priority, jobs.c.shape)
        queued = columns.where(jobs.c.status == JobStatus.queued).distinct()
        return [Line(*row) for row in self._connection.execute(queued)]

    def in_line(self, line: Line, limit: int, offset: int = 0) -> list[Job]:
        """The next jobs of a line, oldest first."""
        return self._read(in_line(line).order_by(jobs.c.queued_at, jobs.c.id).limit(limit).offset(offset))

    def told_otherwise(self, line: Line, reason: str, limit: int) -> list[Job]:
        """Jobs of a line whose reader is told another reason for the wait, not this one or more than it."""
        other = ~jobs.c.reason.startswith(reason, autoescape=True)
        return self._read(in_line(line).where(other).limit(limit))

    def finished_before(self, when: datetime, limit: int = 100) -> list[Job]:
        return self._read(jobs_where(jobs.c.finished_at < when.timestamp()).limit(limit))

    def forget(self, job: Job) -> None:
        self._forgotten.append(job.id)

    # ── Commands ──

    def already_handled(self, ids: Collection[str]) -> set[str]:
        known = set(self._handled)
        for part in chunks(list(ids)):
            known.update(self._connection.scalars(select(handled.c.id).where(handled.c.id.in_(part))))
        return known

    def mark_handled(self, command_id: str, now: datetime) -> None:
        self._handled[command_id] = now

    def remember_cancel(self, job_id: str, now: datetime) -> None:
        self._early_cancels[job_id] = now

    def cancelled_early(self, ids: Collection[str]) -> set[str]:
        known = set(self._early_cancels)
        for part in chunks(list(ids)):
            query = select(early_cancels.c.job_id).where(early_cancels.c.job_id.in_(part))
            known.update(self._connection.scalars(query))
        return known

    # ── Deployments ──

    def deployment(self, key: str) -> Deployment | None:
        if key in self._deployments:
            return self._deployments[key]
        text = self._connection.scalar(select(deployments.c.document).where(deployments.c.key == key))
        return Deployment.model_validate_json(text) if text else None

    def deployments(self) -> list[Deployment]:
        """All, the deleted ones too: they may still be leaving their places."""
        texts = self._connection.scalars(select(deployments.c.document).order_by(deployments.c.key))
        return [Deployment.model_validate_json(text) for text in texts]

    def put_deployment(self, deployment: Deployment) -> None:
        self._deployments[deployment.key] = deployment

    # ── Outbox ──

    def mark(self, topic: Topic, key: str, now: datetime) -> None:
        """The current state of `key` shall be published."""
        self._dirty[topic.name, key] = now

    def send(self, topic: Topic, key: str, message: Message, now: datetime) -> None:
        """This message shall be published, once even if it is sent again before that."""
        row = {"id": message.id, "topic": topic.name, "key": key, "since": now.timestamp(), "raw": message.encode()}
        self._outgoing.append(row)

    # ── Writing it down ──

    @property
    def staged(self) -> bool:
        return any(
            (
                self._jobs,
                self._deployments,
                self._handled,
                self._early_cancels,
                self._forgotten,
                self._dirty,
                self._outgoing,
            )
        )

    def write(self, connection: Connection) -> None:
        """Everything, inside the caller's transaction."""
        upsert(connection, jobs, ["id"], [job_row(job) for job in self._jobs.values()])
        upsert(connection, deployments, ["key"], [deployment_row(each) for each in self._deployments.values()])
        rows = [{"id": command_id, "at": at.timestamp()} for command_id, at in self._handled.items()]
        upsert(connection, handled, ["id"], rows)
        rows = [{"job_id": job_id, "at": at.timestamp()} for job_id, at in self._early_cancels.items()]
        upsert(connection, early_cancels, ["job_id"], rows)
        for part in chunks(self._forgotten):
            connection.execute(delete(jobs).where(jobs.c.id.in_(part)))
        mark_dirty(connection, self._dirty)
        if self._outgoing:
            connection.execute(insert_into(connection, outgoing).on_conflict_do_nothing(), self._outgoing)

    def _read(self, query: Select[Any]) -> list[Job]:
        """Jobs as they are in the database, or as this decision has changed them."""
        read = [parse_job(text) for text in self._connection.scalars(query)]
        return [self._jobs.get(job.id, job) for job in read]


def jobs_where(*conditions: Any) -> Select[Any]:
    return select(jobs.c.document).where(*conditions)


@lru_cache(maxsize=4096)
def parse_job(document: str) -> Job:
    """The job in a document. Jobs never change, so that the same document need not be read twice."""
    return Job.model_validate_json(document)


def active_jobs(connection: Connection) -> list[Job]:
    """Jobs with an attempt that holds places."""
    return [parse_job(text) for text in connection.scalars(jobs_where(jobs.c.status.in_(ACTIVE)))]


def in_line(line: Line) -> Select[Any]:
    return jobs_where(
        jobs.c.status == JobStatus.queued,
        jobs.c.tenant == line.tenant,
        jobs.c.priority == line.priority,
        jobs.c.shape == line.shape,
    )


def job_row(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "status": job.status.value,
        **line_of(job)._asdict(),
        "queued_at": job.queued_at.timestamp(),
        "not_before": job.not_before.timestamp() if job.not_before else None,
        "finished_at": job.finished_at.timestamp() if job.finished_at else None,
        "reason": job.reason,
        "version": job.version,
        "desired_version": 0 if job.status in TERMINAL else job.desired_version,
        "document": job.model_dump_json(),
    }


def deployment_row(deployment: Deployment) -> dict[str, Any]:
    return {
        "key": deployment.key,
        "version": deployment.version,
        "deleted": deployment.deleted,
        "document": deployment.model_dump_json(),
    }


def mark_dirty(connection: Connection, keys: dict[tuple[str, str], datetime]) -> None:
    """Note keys whose current state is to be published; one that waits already keeps its age."""
    if keys:
        rows = [
            {"topic": topic, "key": key, "revision": 1, "since": now.timestamp()} for (topic, key), now in keys.items()
        ]
        again = {"revision": dirty.c.revision + 1}
        statement = insert_into(connection, dirty)
        connection.execute(statement.on_conflict_do_update(index_elements=["topic", "key"], set_=again), rows)


def purge_old_commands(connection: Connection, before: datetime) -> None:
    """Forget ids of commands that the bus no longer keeps, so that they cannot come again."""
    connection.execute(delete(handled).where(handled.c.at < before.timestamp()))
    connection.execute(delete(early_cancels).where(early_cancels.c.at < before.timestamp()))


def take_over(engine: Engine) -> int:
    """Begin a new epoch and return it: from now on whoever led before cannot write."""
    with engine.begin() as connection:
        connection.execute(update(leader).values(epoch=leader.c.epoch + 1))
        return int(connection.execute(select(leader.c.epoch)).scalar_one())


def count_by_status(connection: Connection) -> dict[str, int]:
    counted = connection.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status))
    return {row[0]: row[1] for row in counted}


def upsert(connection: Connection, table: Table, keys: Sequence[str], rows: list[dict[str, Any]]) -> None:
    if rows:
        statement = insert_into(connection, table)
        rest = {name: statement.excluded[name] for name in rows[0] if name not in keys}
        connection.execute(statement.on_conflict_do_update(index_elements=list(keys), set_=rest), rows)


def chunks(values: Sequence[str]) -> Iterable[Sequence[str]]:
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))
