"""Statuses reach the bus in order, and what was overtaken while it was away is not sent."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from pathlib import Path

import pytest

from services.inference.heartbeat import Heartbeat
from services.inference.reports import StatusReports
from shared.bus.memory import MemoryBus
from shared.bus.port import Position
from shared.contracts.deployments import ReplicaState, ReplicaStatus
from shared.contracts.message import Message, decode
from shared.contracts.nodes import Capacity, Role
from shared.contracts.topics import DEPLOYMENTS_STATUS, Topic
from shared.node_name import NodeName
from tests.waiting import eventually


def status(seq: int, replica: str = "r1") -> ReplicaStatus:
    return ReplicaStatus(replica_id=replica, deployment="d", node="n", state=ReplicaState.ready, seq=seq)


def published(bus: MemoryBus) -> list[int | None]:
    """The sequence numbers on the topic; None for a tombstone."""
    messages = [record.raw and decode(record.raw) for record in bus.server.logs[DEPLOYMENTS_STATUS.name].records]
    return [message.seq if isinstance(message, ReplicaStatus) else None for message in messages]


async def test_statuses_come_in_order_and_the_tombstone_last() -> None:
    bus = MemoryBus()
    reports = StatusReports(bus)
    reports.say("r1", status(1))
    await reports.said("r1")
    reports.say("r1", status(2))
    await reports.said("r1")
    reports.say("r1", None)
    await reports.said("r1")
    assert published(bus) == [1, 2, None]


async def test_while_the_bus_is_away_only_the_latest_is_kept_and_sent_later() -> None:
    bus = MemoryBus()
    bus.away = True
    reports = StatusReports(bus, retry_s=0.01)
    for seq in range(1, 100):
        reports.say("r1", status(seq))
    reports.say("r2", status(7, "r2"))
    await reports.close(timeout_s=0.05)
    assert published(bus) == []
    reports = StatusReports(bus, retry_s=0.01)
    for seq in range(1, 100):
        reports.say("r1", status(seq))
    bus.away = False
    await reports.said("r1")
    assert published(bus) == [99]


async def test_what_is_said_while_another_is_on_its_way_follows_it() -> None:
    bus = MemoryBus()
    reports = StatusReports(bus)
    reports.say("r1", status(1))
    reports.say("r1", status(2))
    reports.say("r1", None)
    await reports.said("r1")
    assert published(bus)[-1] is None


class Trying(MemoryBus):
    """Counts what it is asked to publish."""

    def __init__(self) -> None:
        super().__init__()
        self.tries = 0

    def publish(self, topic: Topic, key: str, message: Message | None) -> Future[Position]:
        self.tries += 1
        return super().publish(topic, key, message)


async def test_an_absence_is_logged_when_it_begins_and_when_it_ends(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO)
    bus = Trying()
    bus.away = True
    reports = StatusReports(bus, retry_s=0.01)
    reports.say("r1", status(1))
    with NodeName(tmp_path, "here", Role.inference) as name:
        heartbeat = Heartbeat(bus, name, Capacity(cpus=1, memory_bytes=2**30), list, every_s=0.01)
        beating = asyncio.create_task(heartbeat.run())
        await asyncio.to_thread(eventually, lambda: bus.tries >= 10)
        bus.away = False
        await reports.said("r1")
        await asyncio.to_thread(eventually, lambda: len(caplog.messages) >= 4)
        beating.cancel()
    assert sorted(caplog.messages) == [
        "the heartbeat waits, and is tried again until it works: the bus is away",
        "the heartbeat works again",
        "the status of replicas waits, and is tried again until it works: the bus is away",
        "the status of replicas works again",
    ]
