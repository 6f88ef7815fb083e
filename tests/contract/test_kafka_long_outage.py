"""A Kafka that was away for longer than its messages lasted takes what comes after them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import pytest

from shared.bus.kafka import KafkaBus
from shared.bus.kafka.topics import create_topics
from shared.bus.port import BusUnavailable
from shared.contracts.inference import Request
from shared.contracts.jobs import CancelJob
from shared.contracts.topics import Topic
from shared.requests.kafka import KafkaRequests
from shared.requests.kafka.topic import create_topic
from shared.requests.port import RequestsUnavailable
from tests.kafka_server import KafkaServer, mortal_kafka
from tests.waiting import aeventually, eventually

EVENTS = Topic("long.events", timedelta(days=1), partitions=1)
LASTS_S = 6.0
"""Longer than one try, so that a message is tried again before it expires."""


@pytest.fixture(scope="module")
def server() -> Iterator[KafkaServer]:
    with mortal_kafka() as server:
        create_topics(server.url, [EVENTS])
        create_topic(server.url)
        yield server


def test_a_bus_publishes_again(server: KafkaServer) -> None:
    bus = KafkaBus(server.url, "test", delivery_timeout_s=LASTS_S, topics=[EVENTS])
    bus.publish(EVENTS, "job", CancelJob(job_id="before")).result()
    with server.frozen():
        lost = bus.publish(EVENTS, "job", CancelJob(job_id="meanwhile"))
        assert isinstance(lost.exception(), BusUnavailable)
    eventually(lambda: bus.publish(EVENTS, "job", CancelJob(job_id="after")).exception() is None, 20)
    bus.close()


async def test_requests_are_sent_again(server: KafkaServer) -> None:
    requests = KafkaRequests(server.url, timeout_s=2)
    await requests.send("replica", asked("before"))
    with server.frozen():
        lost = asyncio.create_task(requests.send("replica", asked("meanwhile")))
        await aeventually(
            lambda: requests._producer._sender._client.in_flight_request_count(), what="the request under way"
        )
        server.kill()
        with pytest.raises(RequestsUnavailable):
            await lost
    server.start()

    async def is_sent() -> bool:
        try:
            await requests.send("replica", asked("after"))
        except RequestsUnavailable:
            return False
        return True

    async with asyncio.timeout(30):
        while not await is_sent():
            pass
    await requests.close()


def asked(name: str) -> Request:
    return Request(id=name, attempt=1, path="/v1/completions", body=b"{}", reply_to="gw:1", headers=[])
