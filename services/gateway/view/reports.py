"""What jobs say, from the log topics into SQL, by position: a batch that comes twice is written once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, delete, update

from services.gateway.sql import insert_new, lock, writing
from services.gateway.tables import files, job_records, submissions
from services.gateway.view.bell import Bell
from services.gateway.view.rewinding import Rewinding
from shared.bus.port import Record
from shared.contracts.artifacts import CommandDone, CommandRejected
from shared.contracts.jobs import JobPurged, LogLines
from shared.contracts.message import Message
from shared.db.locks import turn

LOGS_KEPT = timedelta(days=7)
RETRY_AFTER = timedelta(seconds=5)


class Reports:
    """Handlers of `jobs.events`, `jobs.logs` and `registry.events`, group `gateway`: one of the gateways sees each."""

    def __init__(self, engine: Engine, bell: Bell) -> None:
        self._engine = engine
        self._bell = bell
        self._rewinding = Rewinding()

    def on_job_records(self, records: Sequence[Record]) -> None:
        rows = [row for record in records if (row := _row(record))]
        with writing(self._engine) as sql:
            self._rewinding.make_way(sql, rows)
            insert_new(sql, job_records, rows)
        self._bell.ring(record.key for record in records)

    def on_registry_events(self, records: Sequence[Record]) -> None:
        answers = [record.message for record in records]
        answered = [one.command_id for one in answers if isinstance(one, CommandDone | CommandRejected)]
        with writing(self._engine) as sql:
            lock(sql, submissions, submissions.c.command_id.in_(answered))
            for answer in answers:
                if isinstance(answer, CommandDone):
                    _settle(sql, answer.command_id, done_at=datetime.now(UTC))
                elif isinstance(answer, CommandRejected):
                    _rejected(sql, answer)
        self._bell.ring(answered)

    def prune(self) -> None:
        """Log lines go after a week; events and progress stay for as long as their job."""
        old = job_records.c.at < datetime.now(UTC) - LOGS_KEPT
        with turn(self._engine, "prune records") as mine, writing(self._engine) as sql:
            if mine:
                sql.execute(delete(job_records).where(job_records.c.type == LogLines.__name__, old))


def _row(record: Record) -> dict[str, Any] | None:
    message = record.message
    if message is None or isinstance(message, JobPurged):
        return None
    return {
        "topic": record.topic.name,
        "part": record.position.partition,
        "pos": record.position.offset,
        "job_id": record.key,
        "type": type(message).__name__,
        "attempt": getattr(message, "attempt", None),
        "rank": getattr(message, "rank", None),
        "run_id": getattr(message, "run_id", None),
        "at": message.at,
        "body": _body(message),
    }


def _body(message: Message) -> dict[str, Any]:
    return message.model_dump(mode="json", exclude={"id", "at", "tenant", "traceparent", "job_id"})


def _rejected(sql: Connection, answer: CommandRejected) -> None:
    if answer.retryable:
        _settle(sql, answer.command_id, next_at=datetime.now(UTC) + RETRY_AFTER)
        return
    _settle(sql, answer.command_id, done_at=datetime.now(UTC), rejected=answer.reason)
    if answer.publication_id:
        mine = files.c.file_id == answer.publication_id, files.c.status == "uploaded"
        sql.execute(delete(files).where(*mine, files.c.deleted))  # no artifact of it will ever be, or be deleted
        sql.execute(update(files).where(*mine).values(status="error", status_details=answer.reason))


def _settle(sql: Connection, command_id: str, **changes: Any) -> None:
    open_one = submissions.c.command_id == command_id, submissions.c.done_at.is_(None)
    sql.execute(update(submissions).where(*open_one).values(**changes))
