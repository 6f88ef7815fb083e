"""What is written down to be said is said, again and again until it is durable on the bus.

States are published as they are now, never an old snapshot, and before the answers: who reads an answer will find the
state. A row is deleted once the bus has it, unless it was marked again in the meantime. Of several registries on one
database one publishes at a time: a slow one could put an older state over a newer one. Where one does, because its
turn ended with its connection to the database while it published, the comparison mends it within a minute.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, Engine, delete, func, select
from sqlalchemy.sql import Delete

from services.registry.tables import current_state, outbox_answers, outbox_states
from shared.backoff import Backoff
from shared.bus.port import Bus, BusError
from shared.bus.publishing import publish_all
from shared.contracts.message import Message, decode
from shared.contracts.topics import REGISTRY_EVENTS, REGISTRY_STATE, Topic
from shared.db import AWAY, reading
from shared.db.locks import turn
from shared.outage import Outage

log = logging.getLogger("registry.outbox")

ROUND = 256
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 3.0


class Entry(NamedTuple):
    """What to say where, and how its row is forgotten."""

    topic: Topic
    key: str
    message: Message | None
    forget: Delete


class Outbox:
    """Publishes on a thread of its own. `wake` after every commit that wrote to it."""

    def __init__(self, engine: Engine, bus: Bus) -> None:
        self._engine = engine
        self._bus = bus
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._outage = Outage(log, "the outbox")

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        """What is not sent yet stays for the next start."""
        self._stopping.set()
        self._wake.set()

    def run(self) -> None:
        backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                with turn(self._engine, "outbox") as mine:
                    while mine and self.publish_round() and not self._stopping.is_set():
                        backoff.reset()
                self._outage.ended()
                if mine:
                    self._wake.wait(LONGEST_PAUSE_S)
                else:
                    self._stopping.wait(FIRST_PAUSE_S)
            except (*AWAY, BusError, TimeoutError) as error:
                self._outage.began(error)
                self._stopping.wait(backoff.next_s())

    def publish_round(self) -> int:
        """Publish what waits; how many messages that was. Raises what the bus or the database raised."""
        with reading(self._engine) as connection:
            answers = list(_answers(connection))  # first: what they speak of is among the states, or on the bus
            states = list(_states(connection))
        self._publish(states)
        if len(states) == ROUND:  # more may wait, of which an answer speaks
            return ROUND
        self._publish(answers)
        return len(states) + len(answers)

    def age_s(self) -> float:
        """How long the oldest entry has waited; 0 when there is none."""
        with reading(self._engine) as connection:
            oldest = [connection.scalar(select(func.min(table.c.since))) for table in (outbox_states, outbox_answers)]
        return max((time.time() - since for since in oldest if since is not None), default=0.0)

    def _publish(self, entries: Sequence[Entry]) -> None:
        failures = publish_all(self._bus, [(each.topic, each.key, each.message) for each in entries])
        durable = [each for each, failure in zip(entries, failures, strict=True) if failure is None]
        if durable:
            with self._engine.begin() as connection:
                for each in sorted(durable, key=lambda each: each.key):  # as `mark_states` locks them
                    connection.execute(each.forget)
        for failure in filter(None, failures):
            raise failure


def _states(connection: Connection) -> Iterable[Entry]:
    for row in connection.execute(select(outbox_states).order_by(outbox_states.c.since).limit(ROUND)).all():
        forget = delete(outbox_states).where(outbox_states.c.key == row.key, outbox_states.c.revision == row.revision)
        yield Entry(REGISTRY_STATE, row.key, current_state(connection, row.key), forget)


def _answers(connection: Connection) -> Iterable[Entry]:
    for row in connection.execute(select(outbox_answers).order_by(outbox_answers.c.seq).limit(ROUND)).all():
        forget = delete(outbox_answers).where(outbox_answers.c.seq == row.seq)
        yield Entry(REGISTRY_EVENTS, row.key, decode(row.answer), forget)
