"""Following a compacted topic: the latest of every key, then every change."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import redis

from shared import valkey
from shared.bus.port import Record
from shared.bus.table import Table
from shared.bus.valkey import layout
from shared.bus.valkey.reading import Reader
from shared.bus.valkey.trimming import is_expired, now_ms, parse_id
from shared.contracts.topics import Topic

log = logging.getLogger("llmos.bus")

CHUNK = 500


@dataclass(frozen=True)
class _Changes:
    """The stream of changes at one moment."""

    last_id: bytes = b"0-0"
    added: int = 0
    trimmed: int = 0


class Follower(Reader):
    """Subscription to a table."""

    def __init__(
        self,
        url: str,
        client_id: str,
        topic: Topic,
        on: Callable[[Record], None],
        caught_up: Callable[[], None] | None,
        patience_s: float,
    ) -> None:
        super().__init__(url, f"{client_id}:{topic.name}", topic)
        self._table = Table(topic, on, caught_up, patience_s, self.stopping)
        self._last_id = b""
        self._seen = 0
        """How many changes the stream had ever had at `_last_id`."""

    def read(self, server: redis.Redis) -> None:
        self._catch_up(server)
        while not self.stopping.is_set():
            found = server.xread({layout.stream(self.topic): self._last_id}, count=256, block=valkey.BLOCK_MS)
            self.answered()
            for entry_id, fields in layout.entries(found):
                self._table.show(layout.from_entry(entry_id, fields))
                if self.stopping.is_set():
                    return
                self._last_id = entry_id
                self._seen += 1
            self._catch_up(server)
            self._table.give_up_lost_keys(layout.to_position(self._last_id))

    def _catch_up(self, server: redis.Redis) -> None:
        """Read the table where changes after the last one seen are trimmed, or where it was wiped or restored."""
        changes = self._changes(server)
        wiped = changes.added < self._seen or parse_id(changes.last_id) < parse_id(self._last_id or b"0-0")
        if wiped:
            log.warning("%s was wiped or restored on the bus: it is read anew", self.topic.name)
        if wiped or not self._last_id or changes.trimmed > self._seen:
            self._read_table(server, changes, wiped=wiped)

    def _read_table(self, server: redis.Redis, changes: _Changes, *, wiped: bool) -> None:
        """Show the table as it is now, and go on with the changes from there. What it no longer has is gone."""
        now = now_ms(server)
        self._table.begin_anew()
        for key, value in server.hscan_iter(layout.table(self.topic), count=CHUNK):
            if not is_expired(self.topic, parse_id(value.partition(b" ")[0]), now):
                self._table.show(layout.from_table(key, value))
            if self.stopping.is_set():
                return
        self._last_id, self._seen = changes.last_id, changes.added
        self._table.all_shown(layout.to_position(changes.last_id), wiped=wiped)

    def _changes(self, server: redis.Redis) -> _Changes:
        try:
            info = server.xinfo_stream(layout.stream(self.topic))
        except redis.ResponseError as error:
            if "no such key" not in str(error):
                raise
            return _Changes()
        added = int(info["entries-added"])
        return _Changes(info["last-generated-id"], added, added - int(info["length"]))
