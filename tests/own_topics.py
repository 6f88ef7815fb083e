"""A bus on a shared Kafka whose topics are one test's own: making the whole vocabulary anew each time would be dear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace

from kafka import TopicPartition

from shared.bus.kafka import KafkaBus
from shared.bus.kafka.topics import create_topics
from shared.bus.port import WIPE_PATIENCE_S, BrokenRecord, Handle, Position, Record, Subscription
from shared.contracts.message import Message, decode
from shared.contracts.topics import TOPICS, Topic
from shared.kafka.clients import consumer
from tests.kafka_server import KafkaServer

PARTITIONS = 2
"""Enough for keys to part."""
DELIVERY_S = 3.0
"""So that a bus that closes during an outage does not hold up the test for long."""


class OwnTopics:
    """The vocabulary on a server, under the names of `scope`."""

    def __init__(self, server: KafkaServer, scope: str) -> None:
        self.server = server
        self._scope = scope
        self._taps: dict[str, Tap] = {}
        create_topics(server.url, self.all)

    @property
    def all(self) -> list[Topic]:
        return [self.own(topic) for topic in TOPICS]

    def own(self, topic: Topic) -> Topic:
        """The topic in whose place it stands here."""
        return replace(topic, name=f"{self._scope}.{topic.name}", partitions=PARTITIONS)

    def bus(self) -> OwnTopicsBus:
        return OwnTopicsBus(KafkaBus(self.server.url, "test", delivery_timeout_s=DELIVERY_S, topics=self.all), self.own)

    def said(self, topic: Topic) -> list[Message]:
        """All that the topic was ever told, tombstones aside, each key's in order."""
        name = self.own(topic).name
        tap = self._taps.get(name) or self._taps.setdefault(name, Tap(self.server, name))
        return [decode(raw) for raw in tap.read() if raw is not None]

    def delete(self) -> None:
        for tap in self._taps.values():
            tap.close()
        names = [each.name for topic in self.all for each in (topic, topic.dlq)]
        self.server.ask(lambda client: client.delete_topics(names))


class OwnTopicsBus:
    """KafkaBus, with the topics of the vocabulary in front and others behind."""

    def __init__(self, bus: KafkaBus, own: Callable[[Topic], Topic]) -> None:
        self._bus = bus
        self._own = own
        self.lag = lambda topic, group: bus.lag(own(topic), group)
        self.dlq_depth = lambda topic: bus.dlq_depth(own(topic))
        self.ping = bus.ping
        self.close = bus.close

    def publish(self, topic: Topic, key: str, message: Message | None) -> Future[Position]:
        return self._bus.publish(self._own(topic), key, message)

    def subscribe(
        self,
        topic: Topic,
        group: str,
        handle: Handle,
        *,
        on_broken: Callable[[BrokenRecord], None] | None = None,
        max_batch: int = 256,
    ) -> Subscription:
        def ours(batch: Sequence[Record]) -> None:
            handle([replace(record, topic=topic) for record in batch])

        def ours_broken(broken: BrokenRecord) -> None:
            assert on_broken is not None
            on_broken(replace(broken, topic=topic))

        broken = ours_broken if on_broken else None
        return self._bus.subscribe(self._own(topic), group, ours, on_broken=broken, max_batch=max_batch)

    def follow(
        self,
        topic: Topic,
        on: Callable[[Record], None],
        caught_up: Callable[[], None] | None = None,
        *,
        patience_s: float = WIPE_PATIENCE_S,
    ) -> Subscription:
        def ours(record: Record) -> None:
            on(replace(record, topic=topic))

        return self._bus.follow(self._own(topic), ours, caught_up, patience_s=patience_s)


class Tap:
    """Reads on, each time it is asked, to where the topic ends then. Threads take turns."""

    def __init__(self, server: KafkaServer, topic: str) -> None:
        self._client = consumer(server.url, "tap", fetch_max_wait_ms=10)
        self._partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        self._client.assign(self._partitions)
        self._client.seek_to_beginning()
        self._raws: list[bytes | None] = []

    def read(self) -> list[bytes | None]:
        ends = self._client.end_offsets(self._partitions)
        while any((self._client.position(where) or 0) < ends[where] for where in self._partitions):
            found = self._client.poll(timeout_ms=100)
            self._raws += [record.value for records in found.values() for record in records]
        return self._raws

    def close(self) -> None:
        self._client.close()
