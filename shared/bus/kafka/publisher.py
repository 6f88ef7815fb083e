"""Publishing through a producer, which sends on its own and tells later what has become of each message."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError, RetriableError

from shared.bus import publisher
from shared.bus.delivery import Pause
from shared.bus.kafka.topics import MAX_MESSAGE_BYTES, misshapen
from shared.bus.port import BusError, Position
from shared.bus.publisher import DELIVERY_TIMEOUT_S, MAX_IN_FLIGHT, Outgoing
from shared.kafka import clients

METADATA_WAIT_MS = 1000
LOOK_AGAIN_S = 0.5
LATE_S = 1.0
"""The producer lets a message expire on its own, except where it waits for the server to know it."""


@dataclass(frozen=True)
class Missing:
    """A topic that no server knows, and its messages, oldest first."""

    why: KafkaError
    waiting: deque[Outgoing] = field(default_factory=deque)


class Publisher(publisher.Publisher):
    """One message at a time goes to the producer, which makes batches of what its server is not yet ready for."""

    most_at_once = 1
    most_bytes_at_once = 1

    def __init__(
        self, url: str, client_id: str, *, timeout_s: float = DELIVERY_TIMEOUT_S, max_in_flight: int = MAX_IN_FLIGHT
    ) -> None:
        super().__init__(timeout_s=timeout_s, max_in_flight=max_in_flight)
        self._url = url
        self._client_id = f"{client_id}:publish"
        self._producer: KafkaProducer | None = None
        self._broken = False
        """The producer met an error that it does not get over."""
        self._sent: dict[Outgoing, None] = {}
        """What somebody waits for that the producer has, oldest first."""
        self._missing: dict[str, Missing] = {}
        """By name. To look for a topic the first time may take long; after that nobody waits for the answer."""
        self._look_again_at = 0.0

    def _has_work(self) -> bool:
        return super()._has_work() or bool(self._sent) or any(missing.waiting for missing in self._missing.values())

    def _send(self, batch: Sequence[Outgoing]) -> None:
        for outgoing in batch:
            self._hand_over(outgoing)
        self._look_again()
        self._give_up_overdue()

    def _hand_over(self, outgoing: Outgoing) -> None:
        """To the producer, which keeps the order and tries on its own; before that, try until the deadline. Where the
        topic is missing, the message waits for it by itself."""
        pause = Pause(threading.Event())
        late: Exception = KafkaTimeoutError("messages before it had to wait")
        while time.monotonic() < outgoing.deadline:
            try:
                client = self._connected()
                if (found := self._find(client, outgoing.topic.name)) is None:
                    self._missing[outgoing.topic.name].waiting.append(outgoing)
                else:
                    self._offer(client, outgoing, found)
                return
            except KafkaError as error:
                late = error
                self._outage.began(error)
                self._give_up_overdue()
                pause.wait()
        self._settle([outgoing], self._late(late))

    def _find(self, client: KafkaProducer, name: str) -> int | None:
        """How many partitions the topic has. None where it is missing."""
        if name not in self._missing:
            try:
                return clients.partition_count(client, name)
            except KafkaError as error:
                self._outage.began(error)
                self._missing[name] = Missing(error)
        return None

    def _look_again(self) -> None:
        """Hand over, in their order, the messages of topics that are missing no more."""
        if time.monotonic() < self._look_again_at:
            return
        self._look_again_at = time.monotonic() + LOOK_AGAIN_S
        try:
            for name in [name for name, missing in self._missing.items() if missing.waiting]:
                client, waiting = self._connected(), self._missing[name].waiting
                if (found := clients.known_partition_count(client, name)) is not None:
                    while waiting:
                        self._offer(client, waiting[0], found)
                        waiting.popleft()
                    del self._missing[name]
        except KafkaError as error:
            self._outage.began(error)

    def _offer(self, client: KafkaProducer, outgoing: Outgoing, found: int) -> None:
        """To the producer, unless the topic, which has `found` partitions, or the message is not as it should be."""
        topic = outgoing.topic
        if found != topic.partitions:
            self._settle([outgoing], misshapen(topic, f"{found} partitions", f"{topic.partitions}"))
            return
        try:
            self._append(client, outgoing)
        except MessageSizeTooLargeError as error:
            self._settle([outgoing], BusError(f"the message is too large for the bus: {error}"))

    def _append(self, client: KafkaProducer, outgoing: Outgoing) -> None:
        with self._changed:
            self._sent[outgoing] = None
        try:
            sent = client.send(
                outgoing.topic.name, key=outgoing.key.encode(), value=outgoing.raw, headers=list(outgoing.headers)
            )
        except BaseException:
            self._forget(outgoing)
            raise
        sent.add_callback(self._written, outgoing)
        sent.add_errback(self._failed, outgoing)

    def _forget(self, outgoing: Outgoing) -> None:
        with self._changed:
            self._sent.pop(outgoing, None)

    def _written(self, outgoing: Outgoing, where: Any) -> None:
        self._outage.ended()
        self._forget(outgoing)
        self._settle([outgoing], [Position(where.partition, where.offset)])

    def _failed(self, outgoing: Outgoing, error: Exception) -> None:
        self._broken = self._broken or not isinstance(error, RetriableError | MessageSizeTooLargeError)
        self._outage.began(error)
        self._forget(outgoing)
        self._settle([outgoing], self._late(error))

    def _give_up_overdue(self) -> None:
        """What the producer still holds after its time counts as in flight, but nobody waits for it any more."""
        now = time.monotonic()
        for missing in self._missing.values():
            while missing.waiting and missing.waiting[0].deadline <= now:
                self._settle([missing.waiting.popleft()], self._late(missing.why))
        long_ago = now - LATE_S
        with self._changed:
            overdue = list(takewhile(lambda outgoing: outgoing.deadline < long_ago, self._sent))
        for outgoing in overdue:
            self._forget(outgoing)
            outgoing.settle(self._late(KafkaTimeoutError("the server did not answer")))

    def _connected(self) -> KafkaProducer:
        if self._broken and not self._sent:
            self._disconnect()
        if self._producer is None:
            self._broken = False
            timeout_ms = int(self._timeout_s * 1000)
            self._producer = clients.producer(
                self._url,
                self._client_id,
                linger_ms=0,
                request_timeout_ms=min(clients.REQUEST_TIMEOUT_MS, timeout_ms),
                delivery_timeout_ms=timeout_ms,
                max_block_ms=METADATA_WAIT_MS,
                max_request_size=MAX_MESSAGE_BYTES,
            )
        return self._producer

    def _disconnect(self) -> None:
        client, self._producer = self._producer, None
        if client is not None:
            clients.close(client)
