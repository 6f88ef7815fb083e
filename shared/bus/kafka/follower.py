"""Following a compacted topic: the latest of every key, then every change."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from uuid import UUID

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaTimeoutError, OffsetOutOfRangeError

from shared.bus.delivery import RawRecord
from shared.bus.kafka.cluster import Cluster
from shared.bus.kafka.reading import Reader, from_kafka
from shared.bus.kafka.topics import TOMBSTONES_KEPT
from shared.bus.port import Position, Record
from shared.bus.table import Table
from shared.contracts.topics import Topic
from shared.kafka.clients import consumer

log = logging.getLogger("llmos.bus")

TABLE_WAIT_MS = 10
"""While the table is read, a read that finds nothing may hold up the one of the next partition."""
LOAD_PATIENCE_S = 15.0

Bounds = dict[int, tuple[int, int]]


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
        cluster: Cluster,
    ) -> None:
        super().__init__(f"{client_id}:{topic.name}", topic, cluster)
        self._url = url
        self._client_id = client_id
        self._table = Table(topic, on, caught_up, patience_s, self.stopping)
        self._identity: UUID | None = None
        self._next: dict[int, int] = {}
        """By partition the offset after the last record shown."""
        self._seen_at = 0.0
        """When the server was last seen."""

    def read(self, identity: UUID) -> None:
        self._catch_up(identity)
        with consumer(self._url, self._client_id, auto_offset_reset="none") as client:
            client.assign([self._where(partition) for partition in self._next])
            for partition, offset in self._next.items():
                client.seek(self._where(partition), offset)
            try:
                self._read_changes(client, identity)
            except OffsetOutOfRangeError as error:
                log.info(
                    "%s: changes are gone that were not seen, so the table is read anew: %s", self.topic.name, error
                )

    def look(self, identity: UUID) -> bool:
        """Also whether the log still reaches as far as what was shown: a restored one may not."""
        same = super().look(identity) and not self._is_behind(self._cluster.bounds(self.topic))
        self._seen_at = time.monotonic()
        return same

    def _read_changes(self, client: KafkaConsumer, identity: UUID) -> None:
        while not self.stopping.is_set() and self.is_same(identity):
            for partition, records in self.poll(client).items():
                for record in records:
                    self._table.show(from_kafka(record))
                    if self.stopping.is_set():
                        return
                    self._next[partition.partition] = record.offset + 1
            self._table.give_up_lost_keys(self._end())

    def _catch_up(self, identity: UUID) -> None:
        """Read the table at first, where changes or tombstones may have been missed, and where it was wiped."""
        bounds = self._cluster.bounds(self.topic)
        wiped = bool(self._next) and (identity != self._identity or self._is_behind(bounds))
        if wiped:
            log.warning("%s was wiped or restored on the bus: it is read anew", self.topic.name)
        missed = any(begin > self._next.get(partition, -1) for partition, (begin, _) in bounds.items())
        away = time.monotonic() - self._seen_at > TOMBSTONES_KEPT.total_seconds() / 2
        if wiped or missed or away:
            self._read_table(bounds, wiped=wiped)
            self._identity = identity
        self._seen_at = time.monotonic()

    def _read_table(self, bounds: Bounds, *, wiped: bool) -> None:
        """Show the table as it is now, and go on with the changes from there. What it no longer has is gone."""
        self._table.begin_anew()
        # `_next` stays until the table is read: a try that fails halfway must not forget that there was one before.
        with consumer(self._url, self._client_id, fetch_max_wait_ms=TABLE_WAIT_MS) as client:
            for partition, (begin, end) in bounds.items():
                for record in self._latest(client, partition, begin, end):
                    if record.raw is not None or record.key in self._table:
                        self._table.show(record)
                if self.stopping.is_set():
                    return
        self._next = {partition: end for partition, (_, end) in bounds.items()}
        self._table.all_shown(self._end(), wiped=wiped)

    def _latest(self, client: KafkaConsumer, partition: int, begin: int, end: int) -> Iterator[RawRecord]:
        """The last record of each key of one partition, as keys never change theirs, in order. Raises KafkaError."""
        if begin >= end:
            return
        where = self._where(partition)
        client.assign([where])
        client.seek(where, begin)
        latest: dict[str, tuple[RawRecord, float]] = {}
        deadline = time.monotonic() + LOAD_PATIENCE_S
        while (client.position(where, timeout_ms=1000) or 0) < end:
            if self.stopping.is_set():
                return
            for found in self.poll(client).get(where, ()):
                if found.offset >= end:  # a change already: it comes again, and in order
                    continue
                record = from_kafka(found)
                latest.pop(record.key, None)
                latest[record.key] = record, found.timestamp / 1000
                deadline = time.monotonic() + LOAD_PATIENCE_S
            if time.monotonic() > deadline:
                raise KafkaTimeoutError(f"nothing more comes of {self.topic.name}, partition {partition}")
        oldest = time.time() - self.topic.retention.total_seconds() if self.topic.retention else 0.0
        yield from (record for record, at in latest.values() if at >= oldest)

    def _end(self) -> Position:
        return Position(0, max(self._next.values(), default=0))

    def _is_behind(self, bounds: Bounds) -> bool:
        """Whether a partition ends before what was shown of it."""
        return any(end < self._next.get(partition, 0) for partition, (_, end) in bounds.items())

    def _where(self, partition: int) -> TopicPartition:
        return TopicPartition(self.topic.name, partition)
