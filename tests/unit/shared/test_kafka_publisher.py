"""What the publisher on Kafka keeps in memory, and for how long, whatever its producer does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from kafka.future import Future as KafkaFuture

from shared.bus.kafka.publisher import Publisher
from shared.bus.port import BusFull, BusUnavailable
from shared.contracts.topics import JOBS_EVENTS
from shared.kafka import clients
from tests.waiting import eventually


@dataclass(frozen=True)
class Where:
    partition: int
    offset: int


@dataclass
class SlowProducer:
    """A producer whose server takes every message but those with the key `slow`."""

    held: list[KafkaFuture] = field(default_factory=list)

    def partitions_for(self, topic: str) -> set[int]:
        return set(range(JOBS_EVENTS.partitions))

    def send(self, topic: str, key: bytes, value: bytes, headers: object) -> KafkaFuture:
        future = KafkaFuture()
        if key == b"slow":
            self.held.append(future)
        else:
            future.success(Where(0, 1))
        return future

    def close(self, timeout: float) -> None: ...


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> SlowProducer:
    slow = SlowProducer()
    monkeypatch.setattr(clients, "producer", lambda *_, **__: slow)
    return slow


@pytest.fixture
def publisher(producer: SlowProducer) -> Iterator[Publisher]:
    publisher = Publisher("kafka://nowhere", "test", timeout_s=60, max_in_flight=10)
    yield publisher
    for future in producer.held:
        future.success(Where(1, 1))
    publisher.close()


def test_a_slow_message_keeps_none_in_memory_that_are_done(publisher: Publisher) -> None:
    slow = publisher.publish(JOBS_EVENTS, "slow", b"0")
    for _ in range(100):
        publisher.publish(JOBS_EVENTS, "quick", b"1").result(10)
    assert [outgoing.future for outgoing in publisher._sent] == [slow]


def test_what_the_producer_still_holds_after_its_time_fails_and_counts_as_in_flight(producer: SlowProducer) -> None:
    publisher = Publisher("kafka://nowhere", "test", timeout_s=0.5, max_in_flight=1)
    with pytest.raises(BusUnavailable, match=r"did not take the message within 0\.5 s"):
        publisher.publish(JOBS_EVENTS, "slow", b"0").result(10)
    with pytest.raises(BusFull):
        publisher.publish(JOBS_EVENTS, "quick", b"1").result(10)
    producer.held[0].success(Where(1, 1))
    eventually(lambda: publisher.publish(JOBS_EVENTS, "quick", b"1").exception(10) is None)
    publisher.close()


def test_what_waits_for_a_server_is_bounded_in_bytes(producer: SlowProducer) -> None:
    publisher = Publisher("kafka://nowhere", "test", timeout_s=60, max_in_flight=10_000)
    accepted = 0
    while not publisher.publish(JOBS_EVENTS, "slow", bytes(2**20)).done():
        accepted += 1
    assert 60 <= accepted <= 64
    eventually(lambda: len(producer.held) == accepted)
    for future in producer.held:
        future.success(Where(1, 1))
    publisher.close()
