"""Brings a compacted topic into SQL: many records in one transaction, only the newest of each key."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from structlog import get_logger

from services.gateway.sql import writing
from shared.bus.port import Bus, Record, Subscription
from shared.contracts.topics import Topic

log = get_logger("gateway.view")

AT_ONCE = 500
PAUSE_S = 1.0

Save = Callable[[Connection, Sequence[Record]], None]
Sweep = Callable[[Connection, set[str], datetime], None]


class Follower:
    """One topic, one thread that writes. A restart reads the topic again, so that nothing needs to be acknowledged.

    `sweep(sql, seen, since)` removes what was deleted while no gateway ran: rows of keys that the topic no longer has.
    """

    def __init__(
        self, engine: Engine, topic: Topic, save: Save, sweep: Sweep, saved: Callable[[Sequence[Record]], None]
    ) -> None:
        self.topic = topic
        self._engine = engine
        self._save = save
        self._sweep = sweep
        self._saved = saved
        self._fresh: dict[str, Record] = {}
        self._seen: set[str] | None = set()
        self._changed = threading.Condition()
        self._all_shown = False
        self._stopping = False
        self._since = datetime.now(UTC)
        self._subscription: Subscription | None = None
        self._thread = threading.Thread(target=self._run, name=f"gateway:{topic.name}", daemon=True)
        self.caught_up = threading.Event()

    @property
    def waiting(self) -> int:
        """Records that came and are not in SQL yet."""
        return len(self._fresh)

    def start(self, bus: Bus) -> None:
        self._since = datetime.now(UTC)
        self._subscription = bus.follow(self.topic, self._on, self._shown)
        self._thread.start()

    def stop(self) -> None:
        if self._subscription:
            self._subscription.close()
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _on(self, record: Record) -> None:
        with self._changed:
            self._fresh.pop(record.key, None)
            self._fresh[record.key] = record
            if self._seen is not None:
                self._seen.add(record.key)
            self._changed.notify()

    def _shown(self) -> None:
        with self._changed:
            self._all_shown = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._fresh or self._stopping or self._sweep_due())
                if self._stopping:
                    return
                batch = [self._fresh.pop(key) for key in list(self._fresh)[:AT_ONCE]]
            if batch:
                self._write(batch)
            elif self._seen is not None:
                self._finish(self._seen)

    def _sweep_due(self) -> bool:
        return self._all_shown and self._seen is not None

    def _write(self, batch: Sequence[Record]) -> None:
        in_order = sorted(batch, key=lambda record: record.key)  # as the other gateways, which write the same rows
        if self._until_done(lambda sql: self._save(sql, in_order)):
            self._saved(batch)

    def _finish(self, seen: set[str]) -> None:
        if self._until_done(lambda sql: self._sweep(sql, seen, self._since)):
            self._seen = None
            self.caught_up.set()
            log.info("caught_up", topic=self.topic.name, keys=len(seen))

    def _until_done(self, work: Callable[[Connection], None]) -> bool:
        """In a transaction, again until it does not fail. False when stopping."""
        while not self._stopping:
            try:
                with writing(self._engine) as sql:
                    work(sql)
                return True
            except SQLAlchemyError as error:
                log.warning("view_waits_for_database", topic=self.topic.name, reason=str(error).splitlines()[0])
            except Exception:  # without this thread the view would fall behind for ever, unseen
                log.exception("view_cannot_take_this", topic=self.topic.name)
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, PAUSE_S)
        return False
