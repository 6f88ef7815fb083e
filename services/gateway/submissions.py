"""What was answered with a 2xx and must have its effect: commands, committed before they are published.

A submission is published again until it is through: until the scheduler shows the job, until the registry has answered,
or, for the rest, until the durable bus has it. Commands about one subject go out in the order of their acceptance.

Several gateways share the table. Requests that may be one and the same, and commands about one subject, are accepted
one after the other, whichever gateway they come to; all others at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, Engine, ScalarSelect, Select, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from structlog import get_logger

from services.gateway.errors import Conflict, TooLarge, Unavailable
from services.gateway.outbox import UNPUBLISHED, Outbox, in_the_way, write_down
from services.gateway.sql import reading, writing
from services.gateway.tables import submissions
from shared.bus.port import Bus, BusError
from shared.contracts.message import MAX_MESSAGE_BYTES, Message
from shared.contracts.topics import Topic
from shared.db.locks import hold
from shared.settings import Settings
from shared.tracing import span

log = get_logger("gateway.submissions")

JOINS_FOR = timedelta(minutes=10)
"""How long an SDK's own retry, which has no key, joins the first try of the same body."""
FIRST_REPEAT = timedelta(seconds=2)
TICK = timedelta(microseconds=1)

Until = Literal["published", "seen", "answered"]


@dataclass(frozen=True)
class Asked:
    """What makes two requests one: who asks for what with which body, and the client's own key, if it sent one."""

    tenant: str
    operation: str
    body_hash: str
    key: str | None = None
    retried: bool = False
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    traceparent: str | None = None
    """The trace that the request belongs to; its command goes on with it."""


@dataclass(frozen=True)
class Order:
    """A command, where it goes, and what it is about."""

    topic: Topic
    subject: str
    resource_id: str
    command: Message
    until: Until


@dataclass(frozen=True)
class Accepted:
    """A submission that is committed. `joined`: it was there before."""

    command_id: str
    resource_id: str
    joined: bool = False


class Submissions:
    """Accepts commands, and lets the outbox bring them to the bus."""

    def __init__(self, engine: Engine, bus: Bus, settings: Settings) -> None:
        self._engine = engine
        self._limit = settings.max_unpublished
        self.outbox = Outbox(engine, bus)

    def start(self) -> None:
        self.outbox.start()

    def stop(self) -> None:
        self.outbox.stop()

    def earlier(self, asked: Asked) -> Accepted | None:
        """What the same request was answered with before. Raises Conflict where the key had another body."""
        with reading(self._engine) as sql:
            return _earlier(sql, asked)

    def accept(self, asked: Asked, order: Order, alongside: Callable[[Connection], object] | None = None) -> Accepted:
        """Commit the order, and what `alongside` writes, in one transaction; then publish.

        Raises Conflict as `earlier` does, TooLarge, and Unavailable when too much waits for the bus.
        """
        _check_size(order.command)
        name = f"accept {type(order.command).__name__}"
        with span(name, asked.traceparent, resource=order.resource_id, command_id=order.command.id) as work:
            order = replace(order, command=order.command.changed(traceparent=work.traceparent))
            try:
                accepted, clear = self._commit(asked, order, alongside)
            except IntegrityError:  # the same key came in on another gateway between our look and our commit
                accepted, clear = self._commit(asked, order, alongside)
            work.set(joined=accepted.joined)
            if clear and not accepted.joined:
                self._publish(order)
        return accepted

    def _publish(self, order: Order) -> None:
        try:
            self.outbox.publish(order.topic, order.subject, order.command)
        except BusError as error:  # it is committed: the outbox goes on trying
            log.warning("publish_put_off", command_id=order.command.id, reason=str(error))

    def outcome(self, command_id: str) -> tuple[bool, str | None]:
        """Whether a submission is through, and why it was rejected, if it was."""
        with reading(self._engine) as sql:
            row = sql.execute(
                select(submissions.c.done_at, submissions.c.rejected).where(submissions.c.command_id == command_id)
            ).one_or_none()
        return (row is None or row.done_at is not None, row.rejected if row else None)

    def _commit(
        self, asked: Asked, order: Order, alongside: Callable[[Connection], object] | None
    ) -> tuple[Accepted, bool]:
        with self.outbox.taken() as taken, writing(self._engine) as sql:
            hold(sql, f"asked {asked.tenant} {asked.key or asked.body_hash}", f"subject {order.subject}")
            write_down(sql, taken)
            if earlier := _earlier(sql, asked) or _overtaking(sql, asked):
                return earlier, False
            self._check_room(sql)
            blocked, newest = sql.execute(select(in_the_way(order.subject), _newest(order.subject))).one()
            clear = not blocked
            sql.execute(insert(submissions).values(_row(asked, order, clear, newest)))
            if alongside:
                alongside(sql)
        return Accepted(order.command.id, order.resource_id), clear

    def _check_room(self, sql: Connection) -> None:
        waiting = select(func.count()).select_from(submissions).where(UNPUBLISHED)
        if (sql.execute(waiting).scalar() or 0) >= self._limit:
            raise Unavailable(
                f"{self._limit} requests wait for the bus already; try again when it is back.",
                retry_after_s=10,
                code="bus_away",
            )


def _check_size(command: Message) -> None:
    size_bytes = len(command.encode())
    if size_bytes > MAX_MESSAGE_BYTES:
        raise TooLarge(
            f"The request comes to {size_bytes} bytes, more than the {MAX_MESSAGE_BYTES} that go through the queue: "
            "send data as a file through /v1/files and name the file here.",
            code="body_too_large",
        )


def _earlier(sql: Connection, asked: Asked) -> Accepted | None:
    mine = submissions.c.tenant == asked.tenant
    if asked.key:
        row = sql.execute(select(submissions).where(mine, submissions.c.idempotency_key == asked.key)).one_or_none()
        if row and (row.body_hash, row.operation) != (asked.body_hash, asked.operation):
            raise Conflict(
                "This Idempotency-Key was used for another request; take a new key for a new request.",
                param="Idempotency-Key",
                code="idempotency_key_reused",
            )
    elif asked.retried:
        row = sql.execute(_alike(asked, asked.at - JOINS_FOR)).one_or_none()
    else:
        return None
    return Accepted(row.command_id, row.resource_id, joined=True) if row else None


def _overtaking(sql: Connection, asked: Asked) -> Accepted | None:
    """The retry of this very request, where it was committed first. It stands for one first try and no more."""
    if asked.key or asked.retried:
        return None
    row = sql.execute(_alike(asked, asked.at).where(submissions.c.retried)).one_or_none()
    if row is None:
        return None
    sql.execute(update(submissions).where(submissions.c.command_id == row.command_id).values(retried=False))
    return Accepted(row.command_id, row.resource_id, joined=True)


def _alike(asked: Asked, since: datetime) -> Select[Any]:
    """The newest submission of the same body."""
    same = submissions.c.body_hash == asked.body_hash, submissions.c.operation == asked.operation
    query = select(submissions).where(submissions.c.tenant == asked.tenant, *same, submissions.c.created_at > since)
    return query.order_by(submissions.c.created_at.desc()).limit(1)


def _newest(subject: str) -> ScalarSelect[Any]:
    return select(func.max(submissions.c.created_at)).where(submissions.c.subject == subject).scalar_subquery()


def _row(asked: Asked, order: Order, clear: bool, newest: datetime | None) -> dict[str, Any]:
    """`clear`: it is published at once, and again only if that does not help. Else it is due when its turn comes.

    `newest`: when the subject's last command was accepted, perhaps by a gateway whose clock is ahead of ours.
    """
    now = datetime.now(UTC)
    created_at = max(now, newest + TICK) if newest else now
    return {
        "command_id": order.command.id,
        "tenant": asked.tenant,
        "idempotency_key": asked.key,
        "operation": asked.operation,
        "body_hash": asked.body_hash,
        "retried": asked.retried and not asked.key,
        "subject": order.subject,
        "resource_id": order.resource_id,
        "topic": order.topic.name,
        "command": order.command.encode(),
        "until": order.until,
        "created_at": created_at,
        "next_at": now + FIRST_REPEAT if clear else now,
        "tries": 0,
    }
