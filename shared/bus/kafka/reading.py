"""Reading a topic of Kafka for as long as it is the same one."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, RetriableError

from shared.bus import reading
from shared.bus.delivery import RawRecord
from shared.bus.kafka.cluster import Cluster
from shared.bus.port import BusUnavailable, Position
from shared.contracts.topics import Topic

POLL_MS = 500
"""How long a subscription may take to notice that it was closed."""
AGAIN_S = 0.2
LOOK_EVERY_S = 5.0


class Reader(reading.Reader):
    """`read`, which begins anew when the server was away at its start, or when the topic is another one."""

    def __init__(self, name: str, topic: Topic, cluster: Cluster) -> None:
        super().__init__(name, topic, away=KafkaError)
        self._cluster = cluster
        self._looked_at = 0.0
        self._there = False
        """Whether the servers answered when they were last asked for the topic."""

    @abstractmethod
    def read(self, identity: UUID) -> None:
        """Read and deliver until `stopping` is set or the topic is another one. Raises KafkaError, BusUnavailable."""

    def session(self) -> None:
        identity = self._cluster.check(self.topic)
        self._looked_at, self._there = time.monotonic(), True
        self.read(identity)

    def is_reading(self, client: KafkaConsumer) -> bool:
        """Whether a poll that brought nothing has looked for something."""
        return True

    def is_same(self, identity: UUID) -> bool:
        """Whether the topic is still the one with this identity. Looks only now and then; an outage changes nothing."""
        if time.monotonic() < self._looked_at + LOOK_EVERY_S:
            return True
        try:
            same = self.look(identity)
        except BusUnavailable as error:
            self.outage.began(error)
            same, self._there = True, False
        else:
            self._there = True
        self._looked_at = time.monotonic()
        return same

    def look(self, identity: UUID) -> bool:
        """As `is_same`, now. Raises BusUnavailable, IncompatibleBus."""
        return self._cluster.check(self.topic) == identity

    def poll(self, client: KafkaConsumer) -> Mapping[TopicPartition, Sequence[Any]]:
        """What has come. Outlasts an outage with the client that it has: a new one would have to wait in its group
        until the old one counts as dead."""
        try:
            found: Mapping[TopicPartition, Sequence[Any]] = client.poll(timeout_ms=POLL_MS)
        except RetriableError as error:
            self.outage.began(error)
            self.stopping.wait(AGAIN_S)
            return {}
        if found or (self._there and self.is_reading(client)):
            self.answered()
        return found


def from_kafka(record: object) -> RawRecord:
    """A record as the library gives it, as delivery takes it."""
    key = record.key.decode(errors="replace") if record.key else ""  # type: ignore[attr-defined]
    position = Position(record.partition, record.offset)  # type: ignore[attr-defined]
    return RawRecord(key, position, record.value)  # type: ignore[attr-defined]
