"""Brings a compacted topic into SQL: many records in one transaction, only the newest of each key."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from structlog import get_logger

from services.gateway.sql import writing
from shared.bus.port import Bus, BusError, Record, Subscription
from shared.contracts.bookmarks import BOOKMARK, TableBookmark
from shared.contracts.topics import Topic

log = get_logger("gateway.view")

AT_ONCE = 500
MOST_WAITING = 10 * AT_ONCE
"""Records kept in memory while SQL is slower than the bus: past that, the bus waits."""
PAUSE_S = 1.0

Save = Callable[[Connection, Sequence[Record]], None]
Sweep = Callable[[Connection, set[str], datetime], None]


class Reading:
    """One reading of a topic from its beginning. `base`: a bookmark from before it began.

    Rows that are older than the base and were not seen were deleted, unless the topic has lost them. Which of the two
    says a later bookmark: whether the table was complete from the base on until after the reading began.
    """

    def __init__(self, began_at: datetime, base: TableBookmark | None = None) -> None:
        self.seen: set[str] = set()
        self.all_shown = False
        self.given_up = False
        """Another one takes its place."""
        self._began_at = began_at
        self._base = base
        self._swept = False

    def saw(self, key: str) -> None:
        """What comes while a later bookmark is waited for counts too."""
        if not self.all_shown or (self._base and not self._swept):
            self.seen.add(key)

    def saw_bookmark(self, bookmark: TableBookmark) -> None:
        if not self.all_shown and bookmark.complete_until < self._began_at:
            self._base = bookmark

    def showed_all(self) -> None:
        self.all_shown = True
        if self._base is None:
            self.seen.clear()  # nothing will follow from it

    def outdated_by(self, bookmark: TableBookmark) -> bool:
        """Whether the topic may have lost something since the base: only a new reading shows what is gone."""
        return self.all_shown and (self._base is None or bookmark.complete_since > self._base.complete_until)

    def sweeps_before(self, bookmark: TableBookmark) -> datetime | None:
        """Rows that are older than this, and were not seen, were deleted. None where nothing is to be swept (yet)."""
        if not self.all_shown or self._swept or self._base is None or self.outdated_by(bookmark):
            return None
        return min(self._began_at, self._base.complete_until) if bookmark.complete_until >= self._began_at else None

    def finish(self) -> None:
        self._swept, self.seen = True, set()


class Follower:
    """One topic, one thread that writes. A restart reads the topic again, so that nothing needs to be acknowledged.

    `sweep(sql, seen, since)` removes what was deleted while no gateway ran: rows older than `since` whose keys the
    topic no longer has. Only the bookmarks of the topic's owner allow that: a topic that was wiped has no keys either.
    """

    def __init__(
        self,
        engine: Engine,
        topic: Topic,
        save: Save,
        sweep: Sweep,
        saved: Callable[[Sequence[Record]], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.topic = topic
        self._engine = engine
        self._save = save
        self._sweep = sweep
        self._saved = saved
        self._now = now
        self._fresh: dict[str, Record] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._reading = Reading(now())
        self._bookmark: TableBookmark | None = None
        self._bus: Bus | None = None
        self._subscription: Subscription | None = None
        self._thread = threading.Thread(target=self._run, name=f"gateway:{topic.name}", daemon=True)
        self.readings = 0
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
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        if self._subscription:
            self._subscription.close()

    def _read(self, bus: Bus, base: TableBookmark | None = None) -> None:
        """From the beginning. What a wipe has lost is shown as deleted by nobody but the owner. Raises BusError."""
        reading = Reading(self._now(), base)
        on, shown = partial(self._on, reading), partial(self._shown, reading)
        self._subscription = bus.follow(self.topic, on, shown, patience_s=float("inf"))
        self._reading = reading
        self.readings += 1

    def _on(self, reading: Reading, record: Record) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or reading.given_up or len(self._fresh) < MOST_WAITING)
            if record.key != BOOKMARK:
                self._fresh.pop(record.key, None)
                self._fresh[record.key] = record
                reading.saw(record.key)
            elif isinstance(record.message, TableBookmark):
                self._bookmark = record.message
                reading.saw_bookmark(record.message)
            self._changed.notify_all()

    def _shown(self, reading: Reading) -> None:
        with self._changed:
            reading.showed_all()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._fresh or self._next())
                if self._stopping:
                    return
                batch = [self._fresh.pop(key) for key in list(islice(self._fresh, AT_ONCE))]
                self._changed.notify_all()
                step = self._next()
            if batch:
                self._write(batch)
            elif step:
                step()

    def _next(self) -> Callable[[], None] | None:
        """What is to be done once all that came is written."""
        reading, bookmark = self._reading, self._bookmark
        if not self.caught_up.is_set():
            return self._catch_up if reading.all_shown else None
        if bookmark is None:
            return None
        if reading.outdated_by(bookmark):
            return partial(self._read_again, bookmark)
        since = reading.sweeps_before(bookmark)
        return partial(self._sweep_once, reading, since) if since else None

    def _catch_up(self) -> None:
        log.info("caught_up", topic=self.topic.name)
        self.caught_up.set()

    def _read_again(self, base: TableBookmark) -> None:
        assert self._bus
        if self._subscription:
            with self._changed:
                self._reading.given_up = True
                self._changed.notify_all()
            self._subscription.close()
            self._subscription = None
        try:
            self._read(self._bus, base)
        except BusError as error:
            log.warning("view_waits_for_bus", topic=self.topic.name, reason=str(error))
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, PAUSE_S)

    def _write(self, batch: Sequence[Record]) -> None:
        in_order = sorted(batch, key=lambda record: record.key)  # as the other gateways, which write the same rows
        if self._until_done(lambda sql: self._save(sql, in_order)):
            self._saved(batch)

    def _sweep_once(self, reading: Reading, since: datetime) -> None:
        if self._until_done(lambda sql: self._sweep(sql, reading.seen, since)):
            log.info("swept", topic=self.topic.name, keys=len(reading.seen))
            reading.finish()

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
