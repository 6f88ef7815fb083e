"""The worlds that the contracts of requests and replies are tested in. Another adapter is one more entry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from shared import replies, requests
from shared.replies.memory import MemoryReplyHub
from shared.replies.port import Replies
from shared.requests.memory import MemoryRequests
from shared.requests.port import Requests
from tests.servers import ValkeyServer, valkey


@dataclass
class RequestsWorld:
    """`connect` gives the requests as a new process has them. `server` is there where it can be killed."""

    connect: Callable[[], Requests]
    server: ValkeyServer | None = None


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
def valkey_requests() -> Iterator[RequestsWorld]:
    with valkey(durable=False) as server:
        yield RequestsWorld(lambda: requests.connect(server.unix_url), server)


@contextmanager
def memory_replies() -> Iterator[RepliesWorld]:
    hub = MemoryReplyHub()
    yield RepliesWorld(hub.replies, hub.flush)


@contextmanager
def valkey_replies() -> Iterator[RepliesWorld]:
    with valkey(durable=False) as server, server.client() as client:
        yield RepliesWorld(lambda: replies.connect(server.unix_url), client.flushall, server)


MORTAL_REQUESTS: dict[str, Callable[[], AbstractContextManager[RequestsWorld]]] = {"valkey": valkey_requests}
REQUESTS = {"memory": memory_requests, **MORTAL_REQUESTS}
MORTAL_REPLIES: dict[str, Callable[[], AbstractContextManager[RepliesWorld]]] = {"valkey": valkey_replies}
REPLIES = {"memory": memory_replies, **MORTAL_REPLIES}
