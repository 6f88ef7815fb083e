"""Brings committed submissions to the bus, and again until they are through. Several gateways may do so at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Row, case, delete, exists, func, or_, select, true, update
from sqlalchemy.exc import SQLAlchemyError
from structlog import get_logger

from services.gateway.sql import reading, writing
from services.gateway.tables import submissions
from shared.bus.port import Bus, BusError, Position
from shared.contracts.message import Message, decode
from shared.contracts.topics import TOPICS, Topic

log = get_logger("gateway.outbox")

LOOK_EVERY_S = 0.5
RETRY_S = 1.0
LONGEST_PAUSE_S = 300.0
AT_ONCE = 200
PUBLISH_TIMEOUT_S = 20.0
KEPT = timedelta(days=8)
"""Done submissions answer idempotency keys for so long: longer than the bus keeps commands."""
PRUNE_EVERY = timedelta(hours=1)
_TOPICS = {topic.name: topic for topic in TOPICS}


class Outbox:
    """One thread that writes down what the bus has taken, and publishes what is due."""

    def __init__(self, engine: Engine, bus: Bus) -> None:
        self._engine = engine
        self._bus = bus
        self._taken: deque[str] = deque()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gateway:outbox", daemon=True)
        self._pruned_at = datetime.now(UTC)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def publish(self, topic: Topic, subject: str, command: Message) -> Future[Position]:
        """Publish without waiting; that it was taken is written down later, by the thread."""
        future = self._bus.publish(topic, subject, command)
        future.add_done_callback(lambda done: self._noted(command.id, done))
        return future

    def nudge(self) -> None:
        """Look at once: something is through, and others may have waited for it."""
        self._wake.set()

    def oldest_unpublished(self) -> datetime | None:
        """When the oldest command that the bus has not taken yet was accepted."""
        query = select(func.min(submissions.c.created_at)).where(submissions.c.published_at.is_(None))
        with reading(self._engine) as sql:
            return sql.execute(query).scalar()

    def _noted(self, command_id: str, done: Future[Position]) -> None:
        if not done.cancelled() and done.exception() is None:
            self._taken.append(command_id)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(LOOK_EVERY_S)
            self._wake.clear()
            try:
                self._write_down()
                self._publish_due()
                self._prune()
            except (SQLAlchemyError, BusError, TimeoutError) as error:
                log.warning("outbox_waits", reason=(str(error) or type(error).__name__).splitlines()[0])
                self._stopping.wait(RETRY_S)
            except Exception:  # without this thread nothing that was put off would ever be published
                log.exception("outbox_failed")
                self._stopping.wait(RETRY_S)
        self._write_down()

    @contextmanager
    def taken(self) -> Iterator[list[str]]:
        """The ids of commands that the bus has taken since the last look; they come again when the block fails."""
        ids = [self._taken.popleft() for _ in range(len(self._taken))]
        try:
            yield ids
        except BaseException:
            self._taken.extendleft(ids)
            raise

    def _write_down(self) -> None:
        """What is lost by a crash is published again."""
        with self.taken() as ids:
            if ids:
                with writing(self._engine) as sql:
                    write_down(sql, ids)

    def _publish_due(self) -> None:
        """The first waits for the bus's answer, so that a bus that is away is asked once a round and not for all."""
        with reading(self._engine) as sql:
            due = [row for row in _due(sql) if not _blocked(sql, row)]
        for number, row in enumerate(due):
            future = self.publish(_TOPICS[row.topic], row.subject, decode(row.command))
            if number == 0:
                future.result(timeout=PUBLISH_TIMEOUT_S)
        if due:
            log.info("published_again", count=len(due), oldest=due[0].created_at.isoformat())
            self._put_off(due)

    def _put_off(self, rows: list[Row[Any]]) -> None:
        now = datetime.now(UTC)
        with writing(self._engine) as sql:
            for row in rows:
                pause = timedelta(seconds=min(2.0 * 2 ** min(row.tries, 10), LONGEST_PAUSE_S))
                sql.execute(
                    update(submissions)
                    .where(submissions.c.command_id == row.command_id)
                    .values(tries=row.tries + 1, next_at=now + pause)
                )

    def _prune(self) -> None:
        now = datetime.now(UTC)
        if now - self._pruned_at < PRUNE_EVERY:
            return
        self._pruned_at = now
        with writing(self._engine) as sql:
            sql.execute(delete(submissions).where(submissions.c.done_at < now - KEPT))


def write_down(sql: Connection, taken: Sequence[str]) -> None:
    """The bus has these commands; for some of them that is all that was to be done."""
    if not taken:
        return
    now = datetime.now(UTC)
    through = case((submissions.c.until == "published", now), else_=submissions.c.done_at)
    sql.execute(
        update(submissions)
        .where(submissions.c.command_id.in_(taken), submissions.c.published_at.is_(None))
        .values(published_at=now, done_at=through)
    )


def _due(sql: Connection) -> list[Row[Any]]:
    now = datetime.now(UTC)
    mine = submissions.c.done_at.is_(None) & (submissions.c.next_at <= now)
    return list(sql.execute(select(submissions).where(mine).order_by(submissions.c.created_at).limit(AT_ONCE)))


def _blocked(sql: Connection, row: Row[Any]) -> bool:
    return bool(sql.execute(select(in_the_way(row.subject, row.created_at))).scalar())


def in_the_way(subject: str, before: datetime | None = None) -> Any:
    """Whether an earlier command of the subject is not through, or has not even reached the bus."""
    unfinished = or_(
        submissions.c.published_at.is_(None),
        (submissions.c.until == "answered") & submissions.c.done_at.is_(None),
    )
    earlier = submissions.c.created_at < before if before else true()
    return exists().where(submissions.c.subject == subject, unfinished, earlier)
