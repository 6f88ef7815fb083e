"""What services stand on in a test: a bus, an object store and databases, its own and empty at the start.

`memory` is the twins with SQLite; `valkey` the same over the bus of `llmos up`; `cluster` Kafka, MinIO and PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch
from uuid import uuid4

import pytest

from shared import requests
from shared.bus.kafka import reading
from shared.bus.memory import MemoryBus, MemoryServer
from shared.bus.port import Bus
from shared.bus.valkey import ValkeyBus, layout
from shared.contracts.message import Message, decode
from shared.contracts.topics import Topic
from shared.settings import Settings
from shared.store import connect
from shared.store.port import ObjectStore
from tests.databases import NewDatabase, in_files, maker
from tests.kafka_server import KafkaServer, kafka
from tests.own_topics import OwnTopics
from tests.s3_server import S3Server
from tests.servers import ValkeyServer, valkey

NOTICES_MS = 50
"""How long a subscription to Kafka may take here to notice that it was closed: else most of a test is such waits."""
GROUNDS = ["memory", "cluster"]


class Ground(Protocol):
    store_settings: dict[str, Any]
    """As a service is told of the store."""
    new_database: NewDatabase
    requests_url: str
    """As in LLMOS_REQUESTS_URL: where inference requests go, if not to the server of the replies."""

    def bus(self) -> Bus:
        """A bus as a new process has it."""

    def bus_away(self) -> AbstractContextManager[None]:
        """Within, the bus's server does not answer; buses may be made nevertheless."""

    def wipe_bus(self) -> None:
        """Whoever connects from now on finds an empty bus. Whoever is connected should have closed."""

    def put_raw(self, topic: Topic, key: str, raw: bytes) -> None:
        """Bytes that no publisher of this version would send."""

    def said(self, topic: Topic) -> list[Message]:
        """All messages that the topic was told until now, tombstones aside, each key's in order."""

    def store(self) -> ObjectStore:
        """The store as a new process has it."""

    def close(self) -> None: ...


class MemoryGround:
    def __init__(self, folder: Path) -> None:
        self.store_settings: dict[str, Any] = {"store_url": f"file://{folder / 'objects'}"}
        self.new_database: NewDatabase = in_files(folder)
        self.requests_url = ""
        self._server = MemoryServer()
        self._buses: list[MemoryBus] = []
        self._away = False

    def bus(self) -> Bus:
        self._buses.append(MemoryBus(self._server))
        self._buses[-1].away = self._away
        return self._buses[-1]

    @contextmanager
    def bus_away(self) -> Iterator[None]:
        self._set_away(True)
        try:
            yield
        finally:
            self._set_away(False)

    def wipe_bus(self) -> None:
        self._server = MemoryServer()

    def put_raw(self, topic: Topic, key: str, raw: bytes) -> None:
        self._server.append(topic.name, key, raw)

    def said(self, topic: Topic) -> list[Message]:
        with self._server.changed:
            raws = [record.raw for record in self._server.logs[topic.name].records]
        return [decode(raw) for raw in raws if raw is not None]

    def store(self) -> ObjectStore:
        return connect(Settings(**self.store_settings))

    def close(self) -> None:
        close_all(self._buses)

    def _set_away(self, away: bool) -> None:
        self._away = away
        for bus in self._buses:
            bus.away = away


class ValkeyGround:
    def __init__(self, folder: Path, server: ValkeyServer) -> None:
        self.store_settings: dict[str, Any] = {"store_url": f"file://{folder / 'objects'}"}
        self.new_database: NewDatabase = in_files(folder)
        self.requests_url = ""
        self._server = server
        self._buses: list[Bus] = []

    def bus(self) -> Bus:
        self._buses.append(ValkeyBus(self._server.bus_url, "test"))
        return self._buses[-1]

    @contextmanager
    def bus_away(self) -> Iterator[None]:
        self._server.kill()
        try:
            yield
        finally:
            self._server.start()

    def wipe_bus(self) -> None:
        with self._server.client() as client:
            client.flushall()

    def put_raw(self, topic: Topic, key: str, raw: bytes) -> None:
        with self._server.client() as client:
            client.xadd(layout.stream(topic), {"k": key, "d": raw})

    def said(self, topic: Topic) -> list[Message]:
        with self._server.client() as client:
            entries: Any = client.xrange(layout.stream(topic))
        return [decode(fields[b"d"]) for _, fields in entries if b"d" in fields]

    def store(self) -> ObjectStore:
        return connect(Settings(**self.store_settings))

    def close(self) -> None:
        close_all(self._buses)


class ClusterGround:
    """Topics of its own on the run's Kafka, a bucket of its own on its MinIO, databases on its PostgreSQL."""

    def __init__(self, server: KafkaServer, minio: S3Server, new_database: NewDatabase) -> None:
        self.new_database = new_database
        self.requests_url = _with_requests(server)
        self.store_settings: dict[str, Any] = {
            "store_url": f"s3://{minio.endpoint}/test-{uuid4().hex[:12]}",
            "s3_access_key": minio.access_key,
            "s3_secret_key": minio.secret_key,
        }
        self._server = server
        self._topics = OwnTopics(server, _scope())
        self._left: list[OwnTopics] = []
        self._buses: list[Bus] = []
        self.store().prepare()

    def bus(self) -> Bus:
        self._buses.append(self._topics.bus())
        return self._buses[-1]

    def bus_away(self) -> AbstractContextManager[None]:
        return self._server.frozen()

    def wipe_bus(self) -> None:
        self._left.append(self._topics)
        self._topics = OwnTopics(self._server, _scope())

    def put_raw(self, topic: Topic, key: str, raw: bytes) -> None:
        self._server.put(self._topics.own(topic).name, key, raw)

    def said(self, topic: Topic) -> list[Message]:
        return self._topics.said(topic)

    def store(self) -> ObjectStore:
        return connect(Settings(**self.store_settings))

    def close(self) -> None:
        close_all(self._buses)
        for topics in (*self._left, self._topics):
            topics.delete()


def close_all(buses: Sequence[Bus]) -> None:
    """All at once: on Kafka each takes half a second to leave its groups."""
    with ThreadPoolExecutor(max(1, len(buses))) as closing:
        list(closing.map(lambda bus: bus.close(), buses))


@contextmanager
def opened(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[Ground]:
    """One ground, for fixtures of any scope. Skips where a server is missing, and fails in CI."""
    with _OPEN[kind](request, folder) as ground:
        try:
            yield ground
        finally:
            ground.close()


@contextmanager
def _memory(_: pytest.FixtureRequest, folder: Path) -> Iterator[Ground]:
    yield MemoryGround(folder)


@contextmanager
def _valkey(_: pytest.FixtureRequest, folder: Path) -> Iterator[Ground]:
    with valkey(durable=True) as server:
        yield ValkeyGround(folder, server)


@contextmanager
def _cluster(request: pytest.FixtureRequest, folder: Path) -> Iterator[Ground]:
    minio: S3Server = request.getfixturevalue("minio")
    with patch.object(reading, "POLL_MS", NOTICES_MS):
        yield ClusterGround(kafka(), minio, maker("postgresql", request, folder))


_OPEN: dict[str, Callable[[pytest.FixtureRequest, Path], AbstractContextManager[Ground]]] = {
    "memory": _memory,
    "valkey": _valkey,
    "cluster": _cluster,
}


@cache
def _with_requests(server: KafkaServer) -> str:
    """Its one topic is shared: what is for others, or was sent before, no replica gets."""
    requests.prepare(server.url)
    return server.url


def _scope() -> str:
    return f"test-{uuid4().hex[:12]}"
