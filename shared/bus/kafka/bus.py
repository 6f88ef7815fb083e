"""The adapter: publishing on one thread, each subscription on threads of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

from shared.bus.delivery import Subscriptions
from shared.bus.kafka.cluster import Cluster
from shared.bus.kafka.follower import Follower
from shared.bus.kafka.group import GroupReader
from shared.bus.kafka.publisher import Publisher
from shared.bus.port import (
    WIPE_PATIENCE_S,
    BrokenRecord,
    Handle,
    Position,
    Record,
    Subscription,
)
from shared.bus.publisher import DELIVERY_TIMEOUT_S, MAX_IN_FLIGHT
from shared.contracts.message import Message
from shared.contracts.topics import TOPICS, Topic
from shared.kafka.address import Address


class KafkaBus:
    """Bus over the Kafka at `kafka://host:port[,host:port]` or, with TLS, `kafkas://…`, whose topics are there.

    Connects when first used. `client_id` names this process in the servers' logs; `ping` asks for `topics`.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        *,
        delivery_timeout_s: float = DELIVERY_TIMEOUT_S,
        max_in_flight: int = MAX_IN_FLIGHT,
        topics: Sequence[Topic] = TOPICS,
    ) -> None:
        Address.parse(url)  # a wrong address is refused here, not on another thread
        self._url = url
        self._topics = topics
        self._client_id = client_id
        self._cluster = Cluster(url, f"{client_id}:ask")
        self._publisher = Publisher(url, client_id, timeout_s=delivery_timeout_s, max_in_flight=max_in_flight)
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
        reader = GroupReader(
            self._url, self._client_id, topic, group, handle, on_broken, max_batch, self._cluster, self._publisher
        )
        return self._subscriptions.start(reader)

    def follow(
        self,
        topic: Topic,
        on: Callable[[Record], None],
        caught_up: Callable[[], None] | None = None,
        *,
        patience_s: float = WIPE_PATIENCE_S,
    ) -> Subscription:
        return self._subscriptions.start(
            Follower(self._url, self._client_id, topic, on, caught_up, patience_s, self._cluster)
        )

    def dlq_depth(self, topic: Topic) -> int:
        return sum(end - begin for begin, end in self._cluster.bounds(topic.dlq).values())

    def lag(self, topic: Topic, group: str) -> int:
        return self._cluster.lag(topic, group)

    def ping(self) -> None:
        self._cluster.ping(self._topics)

    def close(self) -> None:
        self._subscriptions.close()
        self._publisher.close()
        self._cluster.close()
