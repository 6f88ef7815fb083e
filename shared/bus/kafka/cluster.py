"""What the bus asks the servers besides reading and writing: which topics there are, how far a group is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import KafkaError

from shared.bus.kafka.topics import cleanup, group_id, misshapen
from shared.bus.port import BusRefuses, BusUnavailable, BusUninitialized
from shared.contracts.topics import Topic
from shared.kafka.clients import Refused, admin
from shared.kafka.topics import cleanup_of, existing
from shared.kafka.trouble import trouble

T = TypeVar("T")

AWAY_S = 0.5
"""So long after a failed connection nobody else tries one: whoever asks would only queue up for it."""


class Cluster:
    """One connection for all of a bus's threads, made when first needed and again after an outage."""

    def __init__(self, url: str, client_id: str) -> None:
        self._url = url
        self._client_id = client_id
        self._lock = threading.Lock()
        self._client: KafkaAdminClient | None = None
        self._away: tuple[float, Exception] | None = None
        self._checked: dict[str, UUID] = {}
        """Topics whose cleanup was looked at, by name: it is asked once for each topic that ever had the name."""

    def ping(self, topics: Sequence[Topic]) -> None:
        """Raises BusUnavailable, BusRefuses, BusUninitialized for a topic that is missing, IncompatibleBus for another
        shape."""
        self._ask(lambda client: self._check(client, topics))

    def check(self, topic: Topic) -> UUID:
        """The topic's identity, another one when it was deleted and made anew. Raises as `ping`."""
        return self._ask(lambda client: self._check(client, [topic]))[topic.name]

    def bounds(self, topic: Topic) -> dict[int, tuple[int, int]]:
        """For each partition the first offset that is kept, and the next one."""
        return self._ask(lambda client: _bounds(client, topic))

    def lag(self, topic: Topic, group: str) -> int:
        """Records after the group's place, or all where it has none yet."""

        def count(client: KafkaAdminClient) -> int:
            bounds = _bounds(client, topic)
            name = group_id(topic, group)
            places = client.list_group_offsets({name: _partitions(topic)})[name]
            reached = {partition.partition: place.offset for partition, place in places.items()}
            return sum(max(0, end - max(begin, reached.get(at, -1))) for at, (begin, end) in bounds.items())

        return self._ask(count)

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _ask(self, question: Callable[[KafkaAdminClient], T]) -> T:
        with self._lock:
            if self._away and time.monotonic() < self._away[0]:
                raise self._no_answer(self._away[1])
            try:
                self._client = self._client or admin(self._url, self._client_id)
                answer = question(self._client)
            except (KafkaError, OSError, RuntimeError) as error:
                self._drop()
                self._away = time.monotonic() + AWAY_S, error
                raise self._no_answer(error) from error
            self._away = None
            return answer

    def _no_answer(self, error: Exception) -> BusUnavailable:
        return BusRefuses(str(error)) if isinstance(error, Refused) else BusUnavailable(trouble(self._url, error))

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _check(self, client: KafkaAdminClient, topics: Sequence[Topic]) -> dict[str, UUID]:
        there = existing(client, [topic.name for topic in topics])
        if missing := [topic.name for topic in topics if topic.name not in there]:
            raise BusUninitialized(f"the bus has no topic {missing[0]} yet: `llmos admin init` makes the topics")
        for topic in topics:
            if (found := len(there[topic.name]["partitions"])) != topic.partitions:
                raise misshapen(topic, f"{found} partitions", f"{topic.partitions}")
        ids = {name: UUID(found["topic_id"]) for name, found in there.items()}
        if unknown := [topic for topic in topics if self._checked.get(topic.name) != ids[topic.name]]:
            found_cleanup = cleanup_of(client, [topic.name for topic in unknown])
            for topic in unknown:
                _check_cleanup(topic, found_cleanup[topic.name])
                self._checked[topic.name] = ids[topic.name]
        return ids


def _check_cleanup(topic: Topic, found: set[str]) -> None:
    """A table must be compacted and a log must not; how long a table is kept is for `llmos admin init`."""
    if ("compact" in found) != topic.compacted:
        raise misshapen(topic, f"the cleanup {','.join(sorted(found))}", cleanup(topic))


def _partitions(topic: Topic) -> list[TopicPartition]:
    return [TopicPartition(topic.name, partition) for partition in range(topic.partitions)]


def _bounds(client: KafkaAdminClient, topic: Topic) -> dict[int, tuple[int, int]]:
    def offsets(which: Any) -> dict[int, int]:
        found = client.list_partition_offsets(dict.fromkeys(_partitions(topic), which))
        return {partition.partition: place.offset for partition, place in found.items()}

    begins, ends = offsets(OffsetSpec.EARLIEST), offsets(OffsetSpec.LATEST)
    return {partition: (begins[partition], ends[partition]) for partition in begins}
