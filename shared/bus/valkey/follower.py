"""Following a compacted topic: the latest of every key, then every change."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import redis

from shared import valkey
from shared.bus.delivery import RawRecord, Showing
from shared.bus.port import Position, Record
from shared.bus.valkey import layout
from shared.bus.valkey.reading import Reader
from shared.bus.valkey.trimming import is_expired, now_ms, parse_id
from shared.contracts.topics import Topic

log = logging.getLogger("llmos.bus")

CHUNK = 500
NEVER = Position(0, -1)


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
    ) -> None:
        super().__init__(url, f"{client_id}:{topic.name}", topic)
        self._showing = Showing(topic, on, self.stopping)
        self._caught_up = caught_up
        self._shown: dict[str, Position] = {}
        self._last_id = b""
        self._seen = 0
        """How many changes the stream had ever had at `_last_id`."""

    def read(self, server: redis.Redis) -> None:
        if not self._last_id or self._missed_some(server):
            self._read_table(server)
        while not self.stopping.is_set():
            found = server.xread({layout.stream(self.topic): self._last_id}, count=256, block=valkey.BLOCK_MS)
            self.answered()
            for entry_id, fields in layout.entries(found):
                self._show(layout.from_entry(entry_id, fields))
                if self.stopping.is_set():
                    return
                self._last_id = entry_id
                self._seen += 1
            if self._missed_some(server):
                self._read_table(server)

    def _read_table(self, server: redis.Redis) -> None:
        """Note where the changes are, show the table, go on from there. Keys that are gone are shown as tombstones."""
        changes = self._changes(server)
        now = now_ms(server)
        self._shown = dict.fromkeys(self._shown, NEVER)  # in a stream that was made anew positions may begin below
        gone = set(self._shown)
        for key, value in server.hscan_iter(layout.table(self.topic), count=CHUNK):
            if not is_expired(self.topic, parse_id(value.partition(b" ")[0]), now):
                record = layout.from_table(key, value)
                gone.discard(record.key)
                self._show(record)
            if self.stopping.is_set():
                return
        for key in gone:
            self._show(RawRecord(key, layout.to_position(changes.last_id), None))
        self._last_id, self._seen = changes.last_id, changes.added
        if self._caught_up is not None and not self.stopping.is_set():
            self._showing.insist("caught_up", self._caught_up)
            self._caught_up = None

    def _show(self, record: RawRecord) -> None:
        """Positions of a key only grow: what the table has shown already does not come again as an old change."""
        shown = self._shown.get(record.key)
        if shown is not None and record.position <= shown:
            return
        self._showing.show(record)
        if record.raw is None:
            self._shown.pop(record.key, None)
        else:
            self._shown[record.key] = record.position

    def _missed_some(self, server: redis.Redis) -> bool:
        """Whether changes after the last one seen are trimmed, or the stream was wiped or restored."""
        changes = self._changes(server)
        another = changes.added < self._seen or parse_id(changes.last_id) < parse_id(self._last_id)
        return another or changes.trimmed > self._seen

    def _changes(self, server: redis.Redis) -> _Changes:
        try:
            info = server.xinfo_stream(layout.stream(self.topic))
        except redis.ResponseError as error:
            if "no such key" not in str(error):
                raise
            return _Changes()
        added = int(info["entries-added"])
        return _Changes(info["last-generated-id"], added, added - int(info["length"]))
