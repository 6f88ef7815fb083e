"""A member of a group: one thread polls and keeps the place in the group, lanes take records to the handler."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from uuid import UUID

from kafka import AsyncConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.net.selector import KernelEvent
from kafka.structs import MemberState

from shared.bus.delivery import RawRecord
from shared.bus.kafka.cluster import Cluster
from shared.bus.kafka.lane import Lane
from shared.bus.kafka.publisher import Publisher
from shared.bus.kafka.reading import Reader, from_kafka
from shared.bus.kafka.topics import group_id
from shared.bus.port import BrokenRecord, Handle, Record
from shared.contracts.topics import Topic
from shared.kafka.clients import REQUEST_TIMEOUT_MS, consumer, go_on_joining, identity_of

log = logging.getLogger("llmos.bus")

SESSION_MS = 10_000
HEARTBEAT_MS = 3_000
REBALANCE_MS = 300_000
"""How long the group waits for a member whose handler runs on while a partition is to move."""
LANE_LOOK_S = 0.01

MakeLane = Callable[[int], Lane]


class GroupReader(Reader):
    """Subscription of one group to one topic."""

    def __init__(
        self,
        url: str,
        client_id: str,
        topic: Topic,
        group: str,
        handle: Handle,
        on_broken: Callable[[BrokenRecord], None] | None,
        max_batch: int,
        cluster: Cluster,
        publisher: Publisher,
    ) -> None:
        super().__init__(f"{client_id}:{topic.name}:{group}", topic, cluster)
        self._url = url
        self._client_id = f"{client_id}:{group}"
        self._group = group
        self._handle = handle
        self._on_broken = on_broken
        self._max_batch = max_batch
        self._publisher = publisher
        self._turn = threading.Lock()
        self._lanes: Lanes | None = None

    def close(self) -> None:
        if self._lanes and self._lanes.run_here():
            self.stopping.set()  # a handler closes its own subscription: it stops when the handler returns
        else:
            super().close()

    def read(self, identity: UUID) -> None:
        client = consumer(
            self._url,
            self._client_id,
            group_id=group_id(self.topic, self._group),
            partition_assignment_strategy=[CooperativeStickyAssignor],
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            max_poll_interval_ms=REBALANCE_MS,
        )
        lanes = self._lanes = Lanes(lambda partition: self._lane(client, partition, identity))
        try:
            client.subscribe([self.topic.name], listener=lanes)
            while not self.stopping.is_set() and self.is_same(identity):
                found = self.poll(client)
                if identity_of(client, self.topic.name) not in {None, identity}:
                    return
                for where, records in found.items():
                    if lanes.has(where.partition) or self._goes_on(client, where, identity):
                        lanes.add(where.partition, [from_kafka(record) for record in records])
                lanes.throttle(client, self.topic)
                go_on_joining(client)
        finally:
            lanes.stop()
            try:
                client.close()
            finally:
                lanes.wait()

    def is_reading(self, client: KafkaConsumer) -> bool:
        return client.group_metadata().state is MemberState.STABLE

    def _goes_on(self, client: KafkaConsumer, where: TopicPartition, identity: UUID) -> bool:
        """Whether the group's place is one in this topic. After one in an earlier topic of the same name it is moved to
        the beginning: that topic's last reader may have saved it in this one. Raises KafkaError, BusUnavailable."""
        place = client.committed(where, metadata=True, timeout_ms=REQUEST_TIMEOUT_MS)
        if place is None or place.metadata in {"", str(identity)}:
            return True
        if self.look(identity):
            log.warning("%s was made anew: group %s begins at its beginning", self.topic.name, self._group)
            client.seek_to_beginning(where)
            client.commit({where: OffsetAndMetadata(0, str(identity), -1)})
        return False

    def _lane(self, client: KafkaConsumer, partition: int, identity: UUID) -> Lane:
        where = TopicPartition(self.topic.name, partition)

        def commit(offset: int) -> None:
            # On the client's own thread, which answers while this reader's thread polls.
            client.commit({where: OffsetAndMetadata(offset, str(identity), -1)})

        on_broken = self._one_at_a_time(self._on_broken) if self._on_broken else None
        handle: Handle = self._one_at_a_time(self._handle)
        return Lane(self.topic, self._group, handle, on_broken, self._max_batch, commit, self._entomb)

    def _one_at_a_time(self, handle: Callable[[Any], None]) -> Callable[[Any], None]:
        """Handlers need not be safe for threads: partitions fail and wait apart, and are handled in turn."""

        def handle_in_turn(what: Sequence[Record] | BrokenRecord) -> None:
            with self._turn:
                handle(what)

        return handle_in_turn

    def _entomb(self, record: RawRecord, reason: str) -> None:
        if self.topic.name.endswith(".dlq"):
            return
        headers = {"reason": reason, "group": self._group, "position": str(record.position)}
        wire = [(name, value.encode()) for name, value in headers.items()]
        self._publisher.publish(self.topic.dlq, record.key, record.raw, wire).result()


class Lanes(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    """The partitions that this member has. A partition is given up only when its handler runs no more and its place
    is saved, so the next owner neither overtakes nor repeats what was handled; heartbeats go on meanwhile."""

    def __init__(self, make: MakeLane) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._lanes: dict[int, Lane] = {}
        self._ending: list[Lane] = []

    def add(self, partition: int, records: Sequence[RawRecord]) -> None:
        with self._lock:
            lane = self._lanes.get(partition) or self._lanes.setdefault(partition, self._make(partition))
            lane.add(records)

    def has(self, partition: int) -> bool:
        """Whether any records of it have come since it was assigned."""
        with self._lock:
            return partition in self._lanes

    def throttle(self, client: KafkaConsumer, topic: Topic) -> None:
        """Read no more of a partition while its lane is full."""
        with self._lock:
            full = {TopicPartition(topic.name, partition) for partition, lane in self._lanes.items() if lane.is_full()}
        mine = client.assignment()
        paused = client.paused()
        client.pause(*(full & mine - paused))
        client.resume(*(paused & mine - full))

    def run_here(self) -> bool:
        """Whether this is the thread of a lane."""
        with self._lock:
            return any(lane.runs_here() for lane in [*self._lanes.values(), *self._ending])

    def stop(self) -> None:
        """End all after the batch at hand."""
        with self._lock:
            self._end(list(self._lanes), lost=False)

    def wait(self) -> None:
        """Returns when no handler runs any more."""
        while self._busy():
            threading.Event().wait(LANE_LOOK_S)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Their lanes are made with their first records."""

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._give_up(revoked, lost=False)

    async def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        await self._give_up(lost, lost=True)

    async def _give_up(self, partitions: Iterable[TopicPartition], *, lost: bool) -> None:
        with self._lock:
            self._end([partition.partition for partition in partitions], lost=lost)
        while self._busy():
            await KernelEvent("_sleep", LANE_LOOK_S)

    def _end(self, partitions: Iterable[int], *, lost: bool) -> None:
        for partition in partitions:
            if lane := self._lanes.pop(partition, None):
                lane.stop(lost=lost)
                self._ending.append(lane)

    def _busy(self) -> bool:
        with self._lock:
            self._ending = [lane for lane in self._ending if lane.is_busy()]
            return bool(self._ending)
