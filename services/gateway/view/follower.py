"""Brings a compacted topic into SQL: many records in one transaction, only the newest of each key."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from structlog import get_logger

from services.gateway.sql import writing
from shared.bus.port import Bus, BusError, Record, Subscription
from shared.contracts.topics import Topic
from shared.contracts.whole import WHOLE, TableWhole

log = get_logger("gateway.view")

AT_ONCE = 500
PAUSE_S = 1.0

Save = Callable[[Connection, Sequence[Record]], None]
Sweep = Callable[[Connection, set[str], datetime], None]


class Reading:
    """One reading of a topic from its beginning. `vouched`: the owner's word that came before it began."""

    def __init__(self, began_at: datetime, vouched: TableWhole | None = None) -> None:
        self.seen: set[str] = set()
        self.all_shown = False
        self.finished = False
        self._began_at = began_at
        self._vouched = vouched

    def saw(self, key: str) -> None:
        if not self.finished:
            self.seen.add(key)

    def sweeps_before(self, word: TableWhole | None) -> datetime | None:
        """Rows that are older than this, and were not seen, were deleted. None where nothing says so: a word that came
        while the reading went on speaks of what may have been added behind its back."""
        if word is None or not (self._is_vouched(word) or word.at < self._began_at):
            return None
        return min(self._began_at, word.as_of)

    def finish(self, heeded: TableWhole | None) -> None:
        self.finished, self._vouched = True, heeded
        self.seen = set()

    def due(self, word: TableWhole | None) -> bool:
        """Whether it is to be finished, or to be followed by another on account of a new word."""
        return self.all_shown and (not self.finished or (word is not None and not self._is_vouched(word)))

    def _is_vouched(self, word: TableWhole) -> bool:
        return self._vouched is not None and self._vouched.id == word.id


class Follower:
    """One topic, one thread that writes. A restart reads the topic again, so that nothing needs to be acknowledged.

    `sweep(sql, seen, since)` removes what was deleted while no gateway ran: rows older than `since` whose keys the
    topic no longer has. Only the word of the topic's owner that it is whole allows that: a topic that was wiped has no
    keys either. Where that word comes later, the topic is read once more.
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
        self._changed = threading.Condition()
        self._stopping = False
        self._reading = Reading(datetime.now(UTC))
        self._word: TableWhole | None = None
        self._bus: Bus | None = None
        self._subscription: Subscription | None = None
        self._thread = threading.Thread(target=self._run, name=f"gateway:{topic.name}", daemon=True)
        self.caught_up = threading.Event()

    @property
    def waiting(self) -> int:
        """Records that came and are not in SQL yet."""
        return len(self._fresh)

    def start(self, bus: Bus) -> None:
        self._bus = bus
        self._read(bus)
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()
        if self._subscription:
            self._subscription.close()

    def _read(self, bus: Bus) -> None:
        """From the beginning. What a wipe has lost is shown as deleted by nobody but the owner. Raises BusError."""
        reading = Reading(datetime.now(UTC), vouched=self._word)
        on, shown = partial(self._on, reading), partial(self._shown, reading)
        self._subscription = bus.follow(self.topic, on, shown, patience_s=float("inf"))
        self._reading = reading

    def _on(self, reading: Reading, record: Record) -> None:
        with self._changed:
            if record.key == WHOLE:
                self._word = record.message if isinstance(record.message, TableWhole) else None
            else:
                self._fresh.pop(record.key, None)
                self._fresh[record.key] = record
                reading.saw(record.key)
            self._changed.notify()

    def _shown(self, reading: Reading) -> None:
        with self._changed:
            reading.all_shown = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._fresh or self._stopping or self._reading.due(self._word))
                if self._stopping:
                    return
                batch = [self._fresh.pop(key) for key in list(self._fresh)[:AT_ONCE]]
            if batch:
                self._write(batch)
            elif self._reading.finished:
                self._read_again()
            else:
                self._finish(self._reading)

    def _read_again(self) -> None:
        """The owner's word has come, or come anew: only a reading that begins after it shows all that it speaks of."""
        assert self._bus
        if self._subscription:
            self._subscription.close()
            self._subscription = None
        try:
            self._read(self._bus)
        except BusError as error:
            log.warning("view_waits_for_bus", topic=self.topic.name, reason=str(error))
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, PAUSE_S)

    def _write(self, batch: Sequence[Record]) -> None:
        in_order = sorted(batch, key=lambda record: record.key)  # as the other gateways, which write the same rows
        if self._until_done(lambda sql: self._save(sql, in_order)):
            self._saved(batch)

    def _finish(self, reading: Reading) -> None:
        word = self._word
        since = reading.sweeps_before(word)
        if since is None:
            log.info("not_swept", topic=self.topic.name, reason="its owner has yet to say that it shows everything")
        elif not self._until_done(lambda sql: self._sweep(sql, reading.seen, since)):
            return
        log.info("caught_up", topic=self.topic.name, keys=len(reading.seen))
        reading.finish(word if since else None)
        self.caught_up.set()

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
