"""The worlds that the contracts of requests and replies are tested in. Another adapter is one more entry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from shared import replies, requests
from shared.replies.memory import MemoryReplyHub
from shared.replies.port import Replies
from shared.requests.kafka import KafkaRequests, topic
from shared.requests.memory import MemoryRequests
from shared.requests.port import Requests
from shared.requests.valkey import stream
from tests.kafka_server import KafkaServer, kafka, mortal_kafka
from tests.servers import ValkeyServer, valkey


class Mortal(Protocol):
    """A server that is a process."""

    def kill(self) -> None: ...

    def start(self) -> None: ...


@dataclass
class RequestsWorld:
    """`connect` gives the requests as a new process has them. `server` is there where it can be killed."""

    connect: Callable[[], Requests]
    server: Mortal | None = None


@dataclass
class ServedRequestsWorld(RequestsWorld):
    """A world with a server. `flush` loses everything; `put_raw` brings a replica what no sender would."""

    flush: Callable[[], object] = lambda: None
    put_raw: Callable[[str, bytes | None], object] = lambda replica, raw: None


@dataclass
class RepliesWorld:
    """`connect` gives a new end. `flush` loses everything, as FLUSHALL does."""

    connect: Callable[[], Replies]
    flush: Callable[[], object]
    server: ValkeyServer | None = None


@contextmanager
def memory_requests() -> Iterator[RequestsWorld]:
    shared = MemoryRequests()
    yield RequestsWorld(lambda: shared)


@contextmanager
def valkey_requests() -> Iterator[ServedRequestsWorld]:
    with valkey(durable=False) as server, server.client() as client:

        def put_raw(replica: str, raw: bytes | None) -> None:
            client.xadd(stream(replica), {"x": b"1"} if raw is None else {"i": raw})

        yield ServedRequestsWorld(lambda: requests.connect(server.unix_url), server, client.flushall, put_raw)


def _on_kafka(server: KafkaServer) -> ServedRequestsWorld:
    def flush() -> None:
        server.delete(topic.NAME)
        topic.create_topic(server.url)

    def put_raw(replica: str, raw: bytes | None) -> None:
        server.put(topic.NAME, replica, raw, topic.partition_of(replica))

    assert isinstance(requests.connect(server.url), KafkaRequests)
    topic.create_topic(server.url)
    return ServedRequestsWorld(lambda: KafkaRequests(server.url, timeout_s=2), None, flush, put_raw)


@contextmanager
def kafka_requests() -> Iterator[ServedRequestsWorld]:
    yield _on_kafka(kafka())


@contextmanager
def mortal_kafka_requests() -> Iterator[RequestsWorld]:
    with mortal_kafka() as server:
        yield replace(_on_kafka(server), server=server)


@contextmanager
def memory_replies() -> Iterator[RepliesWorld]:
    hub = MemoryReplyHub()
    yield RepliesWorld(hub.replies, hub.flush)


@contextmanager
def valkey_replies() -> Iterator[RepliesWorld]:
    with valkey(durable=False) as server, server.client() as client:
        yield RepliesWorld(lambda: replies.connect(server.unix_url), client.flushall, server)


MORTAL_REQUESTS: dict[str, Callable[[], AbstractContextManager[RequestsWorld]]] = {
    "valkey": valkey_requests,
    "kafka": mortal_kafka_requests,
}
SERVED_REQUESTS = {"valkey": valkey_requests, "kafka": kafka_requests}
REQUESTS: dict[str, Callable[[], AbstractContextManager[RequestsWorld]]] = {
    "memory": memory_requests,
    **SERVED_REQUESTS,
}
MORTAL_REPLIES: dict[str, Callable[[], AbstractContextManager[RepliesWorld]]] = {"valkey": valkey_replies}
REPLIES = {"memory": memory_replies, **MORTAL_REPLIES}
