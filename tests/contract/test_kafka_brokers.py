"""Topics on a Kafka of several brokers: what each is told follows from the brokers that have it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import TypeVar

import pytest
from kafka import TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError

from shared.bus.kafka.topics import create_topics
from shared.bus.port import BusUnavailable
from shared.contracts.topics import Topic
from tests.kafka_server import KafkaServer, another_broker, mortal_kafka
from tests.waiting import eventually

T = TypeVar("T")

OLD = Topic("old.events", timedelta(days=1), partitions=2)
NEW = Topic("new.events", timedelta(days=1), partitions=2)
ALONE = {"min.insync.replicas": "1", "flush.messages": "1"}
OF_THREE = {"min.insync.replicas": "2"}


@pytest.fixture
def brokers() -> Iterator[list[KafkaServer]]:
    """Three that are to be one cluster; the first is up, and has the old topic alone."""
    with mortal_kafka() as first, ExitStack() as others:
        create_topics(first.url, [OLD])
        brokers = [first]
        for number in (2, 3):
            brokers.append(another_broker(first, number))
            others.callback(brokers[-1].end)
        yield brokers


def insist(deed: Callable[[], T]) -> T:
    """Again until the client does not ask the broker that is away."""

    def attempt() -> list[T]:
        try:
            return [deed()]
        except (BusUnavailable, KafkaError):
            return []

    return eventually(attempt, 30)[0]


def set_for(server: KafkaServer, topic: Topic) -> dict[str, str]:
    """What the topic itself was told that says how much an acknowledgement is worth."""
    found = server.ask(lambda client: client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic.name)]))
    return {name: said["value"] for name, said in found["topic"][topic.name].items() if name in ALONE}


def replicas_of(server: KafkaServer, topic: Topic, *, up: bool = False) -> set[int]:
    """How many brokers have a partition of it, or have it and are up."""
    described = server.ask(lambda client: client.describe_topics([topic.name]))[0]
    return {len(partition["isr_nodes" if up else "replica_nodes"]) for partition in described["partitions"]}


def test_a_topic_is_told_what_suits_the_brokers_that_have_it(brokers: list[KafkaServer]) -> None:
    first, second, third = brokers
    assert set_for(first, OLD) == ALONE
    for broker in (second, third):
        broker.start()
    eventually(lambda: len(first.ask(lambda client: client.describe_cluster())["brokers"]) == 3, 30)

    create_topics(first.url, [OLD, NEW])
    assert (replicas_of(first, OLD), set_for(first, OLD)) == ({1}, ALONE)
    assert (replicas_of(first, NEW), set_for(first, NEW)) == ({3}, OF_THREE)

    third.kill()
    eventually(lambda: insist(lambda: replicas_of(first, NEW, up=True)) == {2}, 30)
    insist(lambda: create_topics(first.url, [OLD, NEW]))
    assert insist(lambda: set_for(first, NEW)) == OF_THREE

    third.start()
    everywhere = {TopicPartition(topic.name, at): [1, 2, 3] for topic in (OLD, OLD.dlq) for at in range(2)}
    insist(lambda: first.ask(lambda client: client.alter_partition_reassignments(everywhere)))
    eventually(lambda: insist(lambda: replicas_of(first, OLD, up=True)) == {3}, 30)
    create_topics(first.url, [OLD])
    assert set_for(first, OLD) == OF_THREE
