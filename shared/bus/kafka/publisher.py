"""Publishing: one thread that hands messages to the producer, so that no caller ever waits for a server."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError, RetriableError

from shared.bus.delivery import Pause
from shared.bus.kafka.topics import MAX_MESSAGE_BYTES
from shared.bus.port import BusError, BusFull, BusUnavailable, IncompatibleBus, Position
from shared.contracts.topics import Topic
from shared.kafka.clients import REQUEST_TIMEOUT_MS, producer
from shared.outage import Outage

log = logging.getLogger("llmos.bus")

DELIVERY_TIMEOUT_S = 15.0
MAX_IN_FLIGHT = 10_000
MAX_IN_FLIGHT_BYTES = 64 * 2**20
METADATA_WAIT_MS = 1000
OVERHEAD_BYTES = 500
"""What a message in flight costs besides its own bytes."""
LATE_S = 1.0
"""The producer lets a message expire on its own, except where it waits for the server to know it."""
LOOK_EVERY_S = 0.5

Headers = Sequence[tuple[str, bytes]]


@dataclass
class _Outgoing:
    topic: Topic
    key: str
    raw: bytes | None
    headers: Headers
    deadline: float
    future: Future[Position] = field(default_factory=Future)

    @property
    def size_bytes(self) -> int:
        return OVERHEAD_BYTES + len(self.key) + len(self.raw or b"")

    def succeed(self, position: Position) -> None:
        try:
            self.future.set_result(position)
        except InvalidStateError:
            log.debug("a message that was given up at its deadline has been written at %s", position)

    def fail(self, error: BusError) -> None:
        try:
            self.future.set_exception(error)
        except InvalidStateError:
            log.debug("a message that was given up at its deadline has failed: %s", error)


class Publisher:
    """As Bus.publish, of encoded messages. Every future is done at the latest a moment after the timeout."""

    def __init__(self, url: str, client_id: str, *, timeout_s: float, max_in_flight: int) -> None:
        self._url = url
        self._client_id = f"{client_id}:publish"
        self._timeout_s = timeout_s
        self._max_in_flight = max_in_flight
        self._outage = Outage(log, "publishing")
        self._producer: KafkaProducer | None = None
        self._broken = False
        """The producer met an error that it does not get over."""
        self._changed = threading.Condition()
        self._waiting: deque[_Outgoing] = deque()
        self._sent: deque[_Outgoing] = deque()
        """With the producer, oldest first; those that are done are dropped from its front."""
        self._in_flight = 0
        self._in_flight_bytes = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="bus:publish", daemon=True)

    def publish(self, topic: Topic, key: str, raw: bytes | None, headers: Headers = ()) -> Future[Position]:
        outgoing = _Outgoing(topic, key, raw, headers, time.monotonic() + self._timeout_s)
        outgoing.future.set_running_or_notify_cancel()  # a caller that stops waiting takes nothing back
        with self._changed:
            if refused := self._refusal():
                outgoing.fail(refused)
                return outgoing.future
            self._waiting.append(outgoing)
            self._in_flight += 1
            self._in_flight_bytes += outgoing.size_bytes
            if self._thread.ident is None:
                self._thread.start()
            self._changed.notify()
        return outgoing.future

    def close(self) -> None:
        """Send what is in flight, which lasts little longer than the delivery timeout."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _refusal(self) -> BusError | None:
        if self._closing:
            return BusUnavailable("the bus is closed in this process")
        if self._in_flight >= self._max_in_flight or self._in_flight_bytes >= MAX_IN_FLIGHT_BYTES:
            return BusFull(f"{self._in_flight} messages wait for the bus: its server is away or slow; try again later")
        return None

    def _run(self) -> None:
        while self._has_work():
            if outgoing := self._next():
                try:
                    self._send(outgoing)
                except Exception as error:
                    log.exception("a message for %s could not be sent", outgoing.topic.name)
                    self._settle(outgoing, BusUnavailable(f"the message could not be sent: {error}"))
            self._give_up_overdue()
        self._drop_producer()

    def _has_work(self) -> bool:
        with self._changed:
            return not self._closing or bool(self._waiting) or self._is_open(self._sent)

    def _next(self) -> _Outgoing | None:
        """The oldest that waits; nothing after a while, so that the overdue are seen."""
        with self._changed:
            if not self._waiting:
                busy = self._in_flight or self._closing
                self._changed.wait(LOOK_EVERY_S if busy else None)
            return self._waiting.popleft() if self._waiting else None

    def _send(self, outgoing: _Outgoing) -> None:
        """Hand to the producer, which keeps the order and tries on its own; before that, try until the deadline."""
        pause = Pause(threading.Event())
        late: Exception = KafkaTimeoutError("messages before it had to wait")
        while time.monotonic() < outgoing.deadline:
            try:
                client = self._connected()
                found = _partitions(client, outgoing.topic)
                if found != outgoing.topic.partitions:
                    self._settle(outgoing, _misshapen(outgoing.topic, found))
                    return
                self._append(client, outgoing)
                return
            except MessageSizeTooLargeError as error:
                self._settle(outgoing, BusError(f"the message is too large for the bus: {error}"))
                return
            except KafkaError as error:
                late = error
                self._outage.began(error)
                pause.wait()
        self._settle(outgoing, self._late(late))

    def _append(self, client: KafkaProducer, outgoing: _Outgoing) -> None:
        sent = client.send(
            outgoing.topic.name, key=outgoing.key.encode(), value=outgoing.raw, headers=list(outgoing.headers)
        )
        self._sent.append(outgoing)
        sent.add_callback(self._written, outgoing)
        sent.add_errback(self._failed, outgoing)

    def _written(self, outgoing: _Outgoing, where: Any) -> None:
        self._outage.ended()
        self._settle(outgoing, Position(where.partition, where.offset))

    def _failed(self, outgoing: _Outgoing, error: Exception) -> None:
        self._broken = self._broken or not isinstance(error, RetriableError | MessageSizeTooLargeError)
        self._outage.began(error)
        self._settle(outgoing, self._late(error))

    def _settle(self, outgoing: _Outgoing, result: Position | BusError) -> None:
        """The producer has let go of it."""
        with self._changed:
            self._in_flight -= 1
            self._in_flight_bytes -= outgoing.size_bytes
            self._changed.notify()
        if isinstance(result, BusError):
            outgoing.fail(result)
        else:
            outgoing.succeed(result)

    def _give_up_overdue(self) -> None:
        """What the producer still holds after its time counts as in flight, but nobody waits for it any more."""
        now = time.monotonic()
        while self._sent and (self._sent[0].future.done() or now > self._sent[0].deadline + LATE_S):
            oldest = self._sent.popleft()
            if not oldest.future.done():
                oldest.fail(self._late(KafkaTimeoutError("the server did not answer")))

    def _late(self, error: Exception) -> BusUnavailable:
        reason = str(error) or type(error).__name__
        return BusUnavailable(f"the bus did not take the message within {self._timeout_s:g} s: {reason}")

    @staticmethod
    def _is_open(sent: Sequence[_Outgoing]) -> bool:
        return any(not outgoing.future.done() for outgoing in sent)

    def _connected(self) -> KafkaProducer:
        if self._broken and not self._is_open(self._sent):
            self._drop_producer()
        if self._producer is None:
            self._broken = False
            timeout_ms = int(self._timeout_s * 1000)
            self._producer = producer(
                self._url,
                self._client_id,
                linger_ms=0,
                request_timeout_ms=min(REQUEST_TIMEOUT_MS, timeout_ms),
                delivery_timeout_ms=timeout_ms,
                max_block_ms=METADATA_WAIT_MS,
                max_request_size=MAX_MESSAGE_BYTES,
            )
        return self._producer

    def _drop_producer(self) -> None:
        client, self._producer = self._producer, None
        if client is None:
            return
        try:
            client.close(timeout=LATE_S)
        except KafkaError as error:
            log.warning("the producer ends with messages that were given up: %s", error)
            client._sender.force_close()  # noqa: SLF001 - `close` has raised before it came to this


def _partitions(client: KafkaProducer, topic: Topic) -> int:
    """How many the topic has; known from memory but for the first time. Raises KafkaError."""
    try:
        return len(client.partitions_for(topic.name))
    except KafkaTimeoutError as error:
        raise KafkaTimeoutError(
            f"no server says where topic {topic.name} is; if there is none yet, `llmos admin init` makes the topics"
        ) from error


def _misshapen(topic: Topic, found: int) -> IncompatibleBus:
    return IncompatibleBus(
        f"topic {topic.name} has {found} partitions on this bus instead of {topic.partitions}: run the version that "
        "made it, or delete it if nothing in it is needed and run `llmos admin init`"
    )
