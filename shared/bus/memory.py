"""The bus in memory: the same promises between threads of one process, for tests and for trying things out."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from shared.bus.delivery import GroupDelivery, RawRecord, Subscriptions, Worker
from shared.bus.port import (
    WIPE_PATIENCE_S,
    BrokenRecord,
    BusUnavailable,
    Handle,
    Position,
    Record,
    Subscription,
)
from shared.bus.table import Table
from shared.contracts.message import Message
from shared.contracts.topics import Topic


@dataclass
class _Log:
    """One topic: every record, when each came, and how far each group is."""

    records: list[RawRecord] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    groups: dict[str, int] = field(default_factory=dict)
    readers: dict[str, threading.Event] = field(default_factory=dict)
    """Who reads for a group, by its stop event: another one waits until it is gone."""


class MemoryServer:
    """What outlives a MemoryBus: the records and the groups' places. Several buses may share one."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.logs: dict[str, _Log] = defaultdict(_Log)

    def append(self, topic: str, key: str, raw: bytes | None) -> Position:
        """Add bytes as they are: also how a test puts something broken on the bus."""
        with self.changed:
            log = self.logs[topic]
            position = Position(0, len(log.records))
            log.records.append(RawRecord(key, position, raw))
            log.times.append(time.time())
            self.changed.notify_all()
            return position

    def wake(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def read(self, topic: str, start: int, count: int, stopping: threading.Event) -> Sequence[RawRecord]:
        """Up to `count` records from `start` on; waits for the first. Empty when stopping."""
        with self.changed:
            log = self.logs[topic]
            self.changed.wait_for(lambda: len(log.records) > start or stopping.is_set())
            return [] if stopping.is_set() else log.records[start : start + count]

    @contextmanager
    def reading(self, topic: str, group: str, stopping: threading.Event) -> Iterator[None]:
        """Be the group's one reader; waits for that."""
        readers = self.logs[topic].readers
        with self.changed:
            self.changed.wait_for(lambda: group not in readers or stopping.is_set())
            readers.setdefault(group, stopping)
        try:
            yield
        finally:
            with self.changed:
                if readers[group] is stopping:
                    del readers[group]
                    self.changed.notify_all()

    def latest(self, topic: Topic) -> tuple[list[RawRecord], int]:
        """The newest record of each key that is kept and no tombstone, and where live records begin."""
        with self.changed:
            log = self.logs[topic.name]
            newest = {record.key: (record, at) for record, at in zip(log.records, log.times, strict=True)}
            oldest = time.time() - topic.retention.total_seconds() if topic.retention else 0.0
            kept = [record for record, at in newest.values() if record.raw is not None and at >= oldest]
            return sorted(kept, key=lambda record: record.position), len(log.records)


class _Deeds:
    """A group's place in a topic of the server."""

    def __init__(self, server: MemoryServer, topic: Topic, group: str) -> None:
        self._server = server
        self._topic = topic
        self._group = group

    def acknowledge(self, records: Sequence[RawRecord]) -> None:
        with self._server.changed:
            self._server.logs[self._topic.name].groups[self._group] = records[-1].position.offset + 1

    def bury(self, record: RawRecord, reason: str) -> None:
        if not self._topic.name.endswith(".dlq"):
            self._server.append(self._topic.dlq.name, record.key, record.raw)


class MemoryBus:
    """Bus over a MemoryServer. `away=True` makes it answer as if the server were gone."""

    def __init__(self, server: MemoryServer | None = None) -> None:
        self.server = server or MemoryServer()
        self.away = False
        self._subscriptions = Subscriptions()
        self._closed = False

    def publish(self, topic: Topic, key: str, message: Message | None) -> Future[Position]:
        future: Future[Position] = Future()
        if self._closed or self.away:
            future.set_exception(BusUnavailable("the bus in memory is closed" if self._closed else "the bus is away"))
        else:
            future.set_result(self.server.append(topic.name, key, message.encode() if message else None))
        return future

    def subscribe(
        self,
        topic: Topic,
        group: str,
        handle: Handle,
        *,
        on_broken: Callable[[BrokenRecord], None] | None = None,
        max_batch: int = 256,
    ) -> Subscription:
        def consume() -> None:
            log = self.server.logs[topic.name]
            with self.server.reading(topic.name, group, stopping):
                while batch := self.server.read(topic.name, log.groups.get(group, 0), max_batch, stopping):
                    if delivery.deliver(batch):
                        deeds.acknowledge(batch)

        stopping = threading.Event()
        deeds = _Deeds(self.server, topic, group)
        delivery = GroupDelivery(topic, group, handle, on_broken, deeds, stopping)
        return self._start(f"bus:{topic.name}:{group}", consume, stopping)

    def follow(
        self,
        topic: Topic,
        on: Callable[[Record], None],
        caught_up: Callable[[], None] | None = None,
        *,
        patience_s: float = WIPE_PATIENCE_S,  # nothing wipes this one
    ) -> Subscription:
        def consume() -> None:
            records, position = self.server.latest(topic)
            for record in records:
                table.show(record)
            table.all_shown(Position(0, position))
            while batch := self.server.read(topic.name, position, 256, stopping):
                for record in batch:
                    table.show(record)
                position += len(batch)

        stopping = threading.Event()
        table = Table(topic, on, caught_up, patience_s, stopping)
        return self._start(f"bus:{topic.name}", consume, stopping)

    def dlq_depth(self, topic: Topic) -> int:
        return len(self.server.logs[topic.dlq.name].records)

    def lag(self, topic: Topic, group: str) -> int:
        with self.server.changed:
            log = self.server.logs[topic.name]
            return len(log.records) - log.groups.get(group, 0)

    def ping(self) -> None:
        if self._closed or self.away:
            raise BusUnavailable("the bus in memory is closed" if self._closed else "the bus is away")

    def close(self) -> None:
        self._closed = True
        self._subscriptions.close()

    def _start(self, name: str, body: Callable[[], None], stopping: threading.Event) -> Subscription:
        return self._subscriptions.start(Worker(name, body, stopping, wake=self.server.wake))


_servers: dict[str, MemoryServer] = defaultdict(MemoryServer)


def connect_memory(url: str) -> MemoryBus:
    """A bus on this process's server of that URL."""
    return MemoryBus(_servers[url])
