"""The outbox: what the truth has written down to be said is said, for ever again until it is durable on the bus.

Of compacted topics it publishes the state as it is now, never an old snapshot; commands and events go as they were
written, one at a time per key. A row is deleted once the bus has it, unless it was marked again in the meantime.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, select
from sqlalchemy.exc import SQLAlchemyError

from services.scheduler.clock import Clock
from services.scheduler.deployments import Deployment, desired_deployment
from services.scheduler.domain import desired_attempt, job_state
from services.scheduler.tables import deployments, dirty, jobs, outgoing
from services.scheduler.truth import Truth, parse_job
from shared.backoff import Backoff
from shared.bus.port import Bus
from shared.bus.publishing import publish_all
from shared.contracts.jobs import DesiredAttempt, Wish
from shared.contracts.message import Message, decode
from shared.contracts.topics import DEPLOYMENTS_DESIRED, JOBS_STATE, TOPICS
from shared.doorbell.port import Doorbell
from shared.outage import Outage

log = logging.getLogger("llmos.scheduler.outbox")

ROUND = 500
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 3.0
TOPIC = {topic.name: topic for topic in TOPICS}


class Mark(NamedTuple):
    """A key whose state is to be published, as of one revision."""

    topic: str
    key: str
    revision: int


class Entry(NamedTuple):
    """What is to be said, and by what its row is known. Without a message it is a tombstone."""

    row: Mark | int
    topic: str
    key: str
    message: Message | None


class Outbox:
    """Publishes what is marked or stored, on a thread of its own. `wake` after every commit that wrote to it."""

    def __init__(self, truth: Truth, bus: Bus, doorbell: Doorbell, clock: Clock) -> None:
        self._truth = truth
        self._bus = bus
        self._doorbell = doorbell
        self._clock = clock
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._last_error: BaseException | None = None
        self._outage = Outage(log, "the outbox")

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()

    def run(self) -> None:
        """Until stopped. Raises Deposed; every other failure is tried again."""
        backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                sent, _ = self.publish_round()
            except SQLAlchemyError as error:
                self._last_error = error
            if self._last_error:
                self._outage.began(self._last_error)
                self._stopping.wait(backoff.next_s())
                continue
            self._outage.ended()
            if not sent:
                backoff.reset()
                self._wake.wait(LONGEST_PAUSE_S)

    def publish_round(self) -> tuple[int, int]:
        """Publish what waits, wait until it is durable, forget it. Returns how many were sent and how many failed."""
        with self._truth.reading() as connection:
            entries = [*stored_messages(connection), *marked_states(connection)]
        failures = publish_all(self._bus, [(TOPIC[each.topic], each.key, each.message) for each in entries])
        durable = [each for each, failure in zip(entries, failures, strict=True) if failure is None]
        if durable:
            self._forget(durable)
        for each in durable:
            self._ring(each.message)
        self._last_error = next(filter(None, failures), None)
        return len(durable), len(entries) - len(durable)

    def age_s(self) -> float:
        """How long the oldest entry has waited; 0 when there is none."""
        with self._truth.reading() as connection:
            oldest = [connection.scalar(select(func.min(table.c.since))) for table in (dirty, outgoing)]
        return max((self._clock.now().timestamp() - since for since in oldest if since is not None), default=0.0)

    def _forget(self, sent: list[Entry]) -> None:
        """Delete what is durable now; a key that was marked again has another revision and stays."""
        with self._truth.writing() as connection:
            if marks := [each.row._asdict() for each in sent if isinstance(each.row, Mark)]:
                connection.execute(_UNMARK, marks)
            if numbers := [{"number": each.row} for each in sent if isinstance(each.row, int)]:
                connection.execute(_DELETE_STORED, numbers)

    def _ring(self, message: Message | None) -> None:
        """Only a hint to look at once, so it comes after what there is to see."""
        if isinstance(message, DesiredAttempt) and message.wish is not Wish.none:
            for node in {place.node for place in message.places}:
                self._doorbell.ring(node, message.job_id, message.attempt)


def stored_messages(connection: Connection) -> list[Entry]:
    """The first stored message of every key: the next one goes when it is durable, so that order holds."""
    firsts = select(func.min(outgoing.c.seq)).group_by(outgoing.c.topic, outgoing.c.key)
    rows = select(outgoing).where(outgoing.c.seq.in_(firsts)).order_by(outgoing.c.seq).limit(ROUND)
    return [Entry(row.seq, row.topic, row.key, decode(row.raw)) for row in connection.execute(rows)]


def marked_states(connection: Connection) -> list[Entry]:
    """The current state of every key that is marked."""
    rows = select(dirty.c.topic, dirty.c.key, dirty.c.revision).order_by(dirty.c.since).limit(ROUND)
    marks = [Mark(*row) for row in connection.execute(rows)]
    states = {topic: current_states(connection, topic, marks) for topic in {mark.topic for mark in marks}}
    return [Entry(mark, mark.topic, mark.key, states[mark.topic].get(mark.key)) for mark in marks]


def current_states(connection: Connection, topic: str, marks: list[Mark]) -> Mapping[str, Message | None]:
    """What a compacted topic shall show for its marked keys. A key that is not in the answer gets a tombstone."""
    keys = [mark.key for mark in marks if mark.topic == topic]
    if topic == DEPLOYMENTS_DESIRED.name:
        texts = connection.scalars(select(deployments.c.document).where(deployments.c.key.in_(keys)))
        return {each.key: desired_deployment(each) for each in map(Deployment.model_validate_json, texts)}
    texts = connection.scalars(select(jobs.c.document).where(jobs.c.id.in_(keys)))
    show = job_state if topic == JOBS_STATE.name else desired_attempt
    return {job.id: show(job) for job in map(parse_job, texts)}


_UNMARK = delete(dirty).where(
    dirty.c.topic == bindparam("topic"), dirty.c.key == bindparam("key"), dirty.c.revision == bindparam("revision")
)
_DELETE_STORED = delete(outgoing).where(outgoing.c.seq == bindparam("number"))
