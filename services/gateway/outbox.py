"""Brings committed submissions to the bus, and again until they are through.

Several gateways share the work: what is due goes to whoever claims it first, which puts it off for the others. Should
one publish a command that another has published too, it is handled once: commands are known by their ids.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    Select,
    bindparam,
    case,
    delete,
    exists,
    func,
    select,
    update,
)
from sqlalchemy.exc import SQLAlchemyError
from structlog import get_logger

from services.gateway.sql import lock, reading, writing
from services.gateway.tables import submissions
from shared.bus.port import Bus, BusError, Position
from shared.contracts.message import AsWritten, Message
from shared.contracts.topics import TOPICS, Topic
from shared.db.locks import turn
from shared.outage import Outage

log = get_logger("gateway.outbox")

LOOK_EVERY_S = 0.5
RETRY_S = 1.0
LONGEST_PAUSE_S = 300.0
AT_ONCE = 200
PUBLISH_TIMEOUT_S = 20.0
KEPT = timedelta(days=8)
"""Done submissions answer idempotency keys for so long: longer than the bus keeps commands."""
PRUNE_EVERY = timedelta(hours=1)
UNPUBLISHED = submissions.c.published_at.is_(None) & submissions.c.done_at.is_(None)
"""Not known to have reached the bus. What had its effect did, though a gateway was killed before it wrote that down."""
UNFINISHED = UNPUBLISHED | (submissions.c.until == "answered") & submissions.c.done_at.is_(None)
"""What later commands about the same subject wait for."""
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
        self._outage = Outage(logging.getLogger("gateway.outbox"), "the outbox")

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
        query = select(func.min(submissions.c.created_at)).where(UNPUBLISHED)
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
                self._outage.ended()
            except (SQLAlchemyError, BusError, TimeoutError) as error:
                self._outage.began(error)
                self._stopping.wait(RETRY_S)
            except Exception:  # without this thread nothing that was put off would ever be published
                log.exception("outbox_failed")
                self._stopping.wait(RETRY_S)
        try:
            self._write_down()
        except SQLAlchemyError as error:
            log.warning("outbox_ends_early", reason=str(error).splitlines()[0])

    @contextmanager
    def taken(self) -> Iterator[list[str]]:
        """The ids of commands that the bus has taken since the last look; they come again when the block fails."""
        ids: list[str] = []
        with suppress(IndexError):  # not counted before: requests take from it at the same time
            while True:
                ids.append(self._taken.popleft())
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
            if sql.execute(_due().limit(1)).one_or_none() is None:
                return
        self._bus.ping()
        with writing(self._engine) as sql:
            claimed = _claim(sql)
        try:
            for number, row in enumerate(claimed):
                command = AsWritten(id=row.command_id, raw=row.command)  # perhaps by a newer gateway
                future = self.publish(_TOPICS[row.topic], row.subject, command)
                if number == 0:
                    future.result(timeout=PUBLISH_TIMEOUT_S)
        except (BusError, TimeoutError):
            self._give_back(claimed)
            raise
        if claimed:
            log.info("published_again", count=len(claimed), oldest=claimed[0].created_at.isoformat())

    def _give_back(self, claimed: Sequence[Row[Any]]) -> None:
        """Due as it was before. Where that cannot be written either, the pause passes."""
        with writing(self._engine) as sql:
            _plan(sql, [(row.command_id, row.tries, row.next_at) for row in claimed])

    def _prune(self) -> None:
        now = datetime.now(UTC)
        if now - self._pruned_at < PRUNE_EVERY:
            return
        self._pruned_at = now
        with turn(self._engine, "prune submissions") as mine, writing(self._engine) as sql:
            if mine:
                sql.execute(delete(submissions).where(submissions.c.done_at < now - KEPT))


def write_down(sql: Connection, taken: Sequence[str]) -> None:
    """The bus has these commands; for some of them that is all that was to be done."""
    if not taken:
        return
    lock(sql, submissions, submissions.c.command_id.in_(taken))
    now = datetime.now(UTC)
    through = case((submissions.c.until == "published", now), else_=submissions.c.done_at)
    sql.execute(
        update(submissions)
        .where(submissions.c.command_id.in_(taken), submissions.c.published_at.is_(None))
        .values(published_at=now, done_at=through)
    )


def _due() -> Select[Any]:
    """The oldest first. What waits for another is left out here, or enough of it would leave no room for the rest.

    One pass over what is open: a condition that looks for each row's predecessors takes PostgreSQL seconds when the
    bus has just gone away, and its statistics know of no open row yet.
    """
    now = datetime.now(UTC)
    first = func.min(submissions.c.created_at).filter(UNFINISHED).over(partition_by=submissions.c.subject)
    columns = submissions.c.command_id, submissions.c.topic, submissions.c.created_at, submissions.c.next_at
    each = select(*columns, first.label("first")).where(submissions.c.done_at.is_(None)).subquery().c
    clear = each.first.is_(None) | (each.created_at <= each.first)
    known = each.topic.in_(_TOPICS)  # the rest is for the newer gateway that wrote it
    oldest = select(each.command_id).where(each.next_at <= now, clear, known).order_by(each.created_at).limit(AT_ONCE)
    # Said again of the row itself: who locks it looks once more whether another gateway has claimed it meanwhile.
    still = submissions.c.done_at.is_(None), submissions.c.next_at <= now
    return select(submissions).where(submissions.c.command_id.in_(oldest), *still).order_by(submissions.c.created_at)


def _claim(sql: Connection) -> Sequence[Row[Any]]:
    """What is due, as it was; from now on it is due after a pause that grows."""
    claimed = sql.execute(_due().with_for_update(skip_locked=True)).all()
    now = datetime.now(UTC)
    pauses_s = [min(2.0 * 2 ** min(row.tries, 10), LONGEST_PAUSE_S) for row in claimed]
    later = zip(claimed, pauses_s, strict=True)
    _plan(sql, [(row.command_id, row.tries + 1, now + timedelta(seconds=pause_s)) for row, pause_s in later])
    return claimed


def _plan(sql: Connection, plans: Sequence[tuple[str, int, datetime]]) -> None:
    """How often these commands were published, and when they are due."""
    change = update(submissions).where(submissions.c.command_id == bindparam("id"))
    change = change.values(tries=bindparam("tried"), next_at=bindparam("due_at"))
    if plans:
        sql.execute(change, [{"id": id_, "tried": tried, "due_at": due_at} for id_, tried, due_at in sorted(plans)])


def in_the_way(subject: str) -> ColumnElement[bool]:
    """Whether a command of the subject is not through, or has not even reached the bus."""
    return exists().where(submissions.c.subject == subject, UNFINISHED)
