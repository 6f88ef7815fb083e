"""The worlds that the bus's contract is tested in: one server each, and processes that come and go on it.

Another adapter is one more entry in WORLDS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from shared import bus
from shared.bus.kafka import KafkaBus
from shared.bus.kafka.topics import create_topics
from shared.bus.memory import MemoryBus, MemoryServer
from shared.bus.port import Bus
from shared.bus.valkey import ValkeyBus, layout
from shared.contracts.topics import TOPICS, Topic
from tests.kafka_server import KafkaServer, kafka, mortal_kafka
from tests.servers import ValkeyServer, valkey


class BusWorld(Protocol):
    def create(self, *topics: Topic) -> None:
        """What `llmos admin init` does, where topics have to be made."""

    def connect(self) -> Bus:
        """A bus as a new process has it."""

    def put_raw(self, topic: Topic, key: str, raw: bytes) -> None:
        """Bytes that no publisher of this version would send."""


class MortalBusWorld(BusWorld, Protocol):
    """A world whose server is a process."""

    url: str

    def connect(self, *, delivery_timeout_s: float = 15, max_in_flight: int = 1000) -> Bus: ...

    def kill(self) -> None:
        """kill -9 of the server."""

    def restart(self) -> None:
        """Start it again on what it had kept."""


class MemoryWorld:
    def __init__(self) -> None:
        self._server = MemoryServer()

    def create(self, *topics: Topic) -> None: ...

    def connect(self) -> Bus:
        return MemoryBus(self._server)

    def put_raw(self, topic: Topic, key: str, raw: bytes) -> None:
        self._server.append(topic.name, key, raw)


class ValkeyWorld:
    def __init__(self, server: ValkeyServer) -> None:
        self._server = server
        self.url = server.bus_url
        self.kill = server.kill
        self.restart = server.start

    def create(self, *topics: Topic) -> None: ...

    def connect(self, *, delivery_timeout_s: float = 15, max_in_flight: int = 1000) -> Bus:
        assert isinstance(bus.connect(self.url, "test"), ValkeyBus)
        return ValkeyBus(self.url, "test", delivery_timeout_s=delivery_timeout_s, max_in_flight=max_in_flight)

    def put_raw(self, topic: Topic, key: str, raw: bytes) -> None:
        with self._server.client() as client:
            client.xadd(layout.stream(topic), {"k": key, "d": raw})
            if topic.compacted:
                client.hset(layout.table(topic), key, b"1-0 " + raw)


class KafkaWorld:
    def __init__(self, server: KafkaServer, topics: Sequence[Topic] = TOPICS) -> None:
        self._server = server
        self._topics = topics
        self.url = server.url
        self.kill = server.kill
        self.restart = server.start

    def create(self, *topics: Topic) -> None:
        create_topics(self.url, topics)

    def connect(self, *, delivery_timeout_s: float = 15, max_in_flight: int = 1000) -> Bus:
        assert isinstance(bus.connect(self.url, "test"), KafkaBus)
        return KafkaBus(
            self.url, "test", delivery_timeout_s=delivery_timeout_s, max_in_flight=max_in_flight, topics=self._topics
        )

    def put_raw(self, topic: Topic, key: str, raw: bytes) -> None:
        self._server.put(topic.name, key, raw)


@contextmanager
def memory_world() -> Iterator[BusWorld]:
    yield MemoryWorld()


@contextmanager
def valkey_world() -> Iterator[MortalBusWorld]:
    with valkey(durable=True) as server:
        yield ValkeyWorld(server)


@contextmanager
def kafka_world() -> Iterator[MortalBusWorld]:
    yield KafkaWorld(kafka())


@contextmanager
def mortal_kafka_world() -> Iterator[MortalBusWorld]:
    with mortal_kafka() as server:
        yield KafkaWorld(server, ())


MORTAL_WORLDS: dict[str, Callable[[], AbstractContextManager[MortalBusWorld]]] = {
    "valkey": valkey_world,
    "kafka": mortal_kafka_world,
}
WORLDS: dict[str, Callable[[], AbstractContextManager[BusWorld]]] = {
    "memory": memory_world,
    "valkey": valkey_world,
    "kafka": kafka_world,
}
