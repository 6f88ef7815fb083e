"""Publishing through a producer, which sends on its own and tells later what has become of each message."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
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
LATE_S = 1.0
"""The producer lets a message expire on its own, except where it waits for the server to know it."""


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

    def _has_work(self) -> bool:
        return super()._has_work() or bool(self._sent)

    def _send(self, batch: Sequence[Outgoing]) -> None:
        for outgoing in batch:
            self._hand_over(outgoing)
        self._give_up_overdue()

    def _hand_over(self, outgoing: Outgoing) -> None:
        """To the producer, which keeps the order and tries on its own; before that, try until the deadline."""
        pause = Pause(threading.Event())
        late: Exception = KafkaTimeoutError("messages before it had to wait")
        while time.monotonic() < outgoing.deadline:
            try:
                client = self._connected()
                topic = outgoing.topic
                found = clients.partition_count(client, topic.name)
                if found != topic.partitions:
                    self._settle([outgoing], misshapen(topic, f"{found} partitions", f"{topic.partitions}"))
                else:
                    self._append(client, outgoing)
                return
            except MessageSizeTooLargeError as error:
                self._settle([outgoing], BusError(f"the message is too large for the bus: {error}"))
                return
            except KafkaError as error:
                late = error
                self._outage.began(error)
                pause.wait()
        self._settle([outgoing], self._late(late))

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
        long_ago = time.monotonic() - LATE_S
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
