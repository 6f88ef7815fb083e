"""The adapter: publishing on one thread, each subscription on one of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import redis

from shared import valkey
from shared.bus.delivery import Subscriptions
from shared.bus.port import (
    WIPE_PATIENCE_S,
    BrokenRecord,
    BusRefuses,
    BusUnavailable,
    Handle,
    Position,
    Record,
    Subscription,
)
from shared.bus.publisher import DELIVERY_TIMEOUT_S, MAX_IN_FLIGHT
from shared.bus.valkey import layout
from shared.bus.valkey.follower import Follower
from shared.bus.valkey.group import GroupReader
from shared.bus.valkey.lag import lag
from shared.bus.valkey.publisher import Publisher
from shared.contracts.message import Message
from shared.contracts.topics import Topic


class ValkeyBus:
    """Bus over a Valkey or Redis server at `valkey+unix:///path`, `valkey://host:port` or `valkeys://host:port` (TLS).

    Connects when first used. `client_id` names this process in the server's list of clients.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        *,
        delivery_timeout_s: float = DELIVERY_TIMEOUT_S,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        self._url = url
        self._client_id = client_id.replace(" ", "_")
        self._server = valkey.client(url)
        self._publisher = Publisher(url, self._client_id, timeout_s=delivery_timeout_s, max_in_flight=max_in_flight)
        self._subscriptions = Subscriptions()

    def publish(self, topic: Topic, key: str, message: Message | None) -> Future[Position]:
        return self._publisher.publish(topic, key, None if message is None else message.encode())

    def subscribe(
        self,
        topic: Topic,
        group: str,
        handle: Handle,
        *,
        on_broken: Callable[[BrokenRecord], None] | None = None,
        max_batch: int = 256,
    ) -> Subscription:
        return self._subscriptions.start(
            GroupReader(self._url, self._client_id, topic, group, handle, on_broken, max_batch)
        )

    def follow(
        self,
        topic: Topic,
        on: Callable[[Record], None],
        caught_up: Callable[[], None] | None = None,
        *,
        patience_s: float = WIPE_PATIENCE_S,
    ) -> Subscription:
        return self._subscriptions.start(Follower(self._url, self._client_id, topic, on, caught_up, patience_s))

    def dlq_depth(self, topic: Topic) -> int:
        with _sentence():
            return int(self._server.xlen(layout.stream(topic.dlq)))

    def lag(self, topic: Topic, group: str) -> int:
        with _sentence():
            return lag(self._server, layout.stream(topic), group)

    def ping(self) -> None:
        with _sentence():
            self._server.ping()

    def close(self) -> None:
        self._subscriptions.close()
        self._publisher.close()
        self._server.close()


@contextmanager
def _sentence() -> Iterator[None]:
    try:
        yield
    except redis.AuthenticationError as error:
        raise BusRefuses(f"the server refuses: {error}") from error
    except redis.RedisError as error:
        raise BusUnavailable(f"the bus does not answer: {error}") from error
