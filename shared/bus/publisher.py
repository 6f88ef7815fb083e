"""Publishing: one thread sends what callers hand over, in their order, so that no caller ever waits for a server."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

from shared.bus.port import BusError, BusFull, BusUnavailable, Position
from shared.contracts.topics import Topic
from shared.outage import Outage

log = logging.getLogger("llmos.bus")

DELIVERY_TIMEOUT_S = 15.0
MAX_IN_FLIGHT = 10_000
MAX_IN_FLIGHT_BYTES = 64 * 2**20
OVERHEAD_BYTES = 500
"""What a message in flight costs besides its own bytes."""
LOOK_EVERY_S = 0.5

Headers = Sequence[tuple[str, bytes]]


@dataclass(eq=False, slots=True)
class Outgoing:
    """An encoded message that was accepted. `number` counts up from message to message of a publisher."""

    topic: Topic
    key: str
    raw: bytes | None
    headers: Headers
    number: int
    deadline: float
    future: Future[Position] = field(default_factory=Future)

    @property
    def size_bytes(self) -> int:
        return OVERHEAD_BYTES + len(self.key) + len(self.raw or b"")

    def settle(self, result: Position | BusError) -> None:
        try:
            if isinstance(result, BusError):
                self.future.set_exception(result)
            else:
                self.future.set_result(result)
        except InvalidStateError:
            log.debug("a message that was given up at its deadline ended so: %s", result)


class Publisher(ABC):
    """As Bus.publish, of encoded messages. Every future is done at the latest a moment after the timeout; what waits
    for a server is bounded in number and in bytes."""

    most_at_once: int
    most_bytes_at_once: int

    def __init__(self, *, timeout_s: float, max_in_flight: int) -> None:
        self._timeout_s = timeout_s
        self._max_in_flight = max_in_flight
        self._outage = Outage(log, "publishing")
        self._changed = threading.Condition()
        self._waiting: deque[Outgoing] = deque()
        self._accepted = 0
        self._in_flight = 0
        self._in_flight_bytes = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="bus:publish", daemon=True)

    def publish(self, topic: Topic, key: str, raw: bytes | None, headers: Headers = ()) -> Future[Position]:
        with self._changed:
            self._accepted += 1
            outgoing = Outgoing(topic, key, raw, headers, self._accepted, time.monotonic() + self._timeout_s)
            outgoing.future.set_running_or_notify_cancel()  # a caller that stops waiting takes nothing back
            if refused := self._refusal():
                outgoing.settle(refused)
                return outgoing.future
            self._waiting.append(outgoing)
            self._in_flight += 1
            self._in_flight_bytes += outgoing.size_bytes
            if self._thread.ident is None:
                self._thread.start()
            self._changed.notify()
        return outgoing.future

    def close(self) -> None:
        """Send what is in flight, which lasts little longer than the delivery timeout, and let go of the server."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()
        self._disconnect()

    @abstractmethod
    def _send(self, batch: Sequence[Outgoing]) -> None:
        """See to it that each is settled in time. Called with none now and then, while some are in flight."""

    @abstractmethod
    def _disconnect(self) -> None: ...

    def _has_work(self) -> bool:
        return not self._closing or bool(self._waiting)

    def _settle(self, batch: Sequence[Outgoing], result: Sequence[Position] | BusError) -> None:
        """They are in flight no more. `result`: where each is, or why none is known to be there."""
        with self._changed:
            self._in_flight -= len(batch)
            self._in_flight_bytes -= sum(outgoing.size_bytes for outgoing in batch)
            self._changed.notify()
        results: Sequence[Position | BusError] = [result] * len(batch) if isinstance(result, BusError) else result
        for outgoing, its_own in zip(batch, results, strict=True):
            outgoing.settle(its_own)

    def _late(self, error: Exception) -> BusUnavailable:
        reason = str(error) or type(error).__name__
        return BusUnavailable(f"the bus did not take the message within {self._timeout_s:g} s: {reason}")

    def _refusal(self) -> BusError | None:
        if self._closing:
            return BusUnavailable("the bus is closed in this process")
        if self._in_flight >= self._max_in_flight or self._in_flight_bytes >= MAX_IN_FLIGHT_BYTES:
            return BusFull(f"{self._in_flight} messages wait for the bus: its server is away or slow; try again later")
        return None

    def _run(self) -> None:
        while self._has_work():
            batch = self._next_batch()
            try:
                self._send(batch)
            except Exception as error:
                log.exception("a batch of %s messages could not be sent", len(batch))
                open_ones = [outgoing for outgoing in batch if not outgoing.future.done()]
                self._settle(open_ones, BusUnavailable(f"the message could not be sent: {error}"))

    def _next_batch(self) -> list[Outgoing]:
        """What is waiting, up to the bounds of a batch. Empty at the end, and now and then while some are in flight."""
        with self._changed:
            if not self._waiting and (self._in_flight or not self._closing):
                self._changed.wait(LOOK_EVERY_S if self._in_flight else None)
            batch: list[Outgoing] = []
            size_bytes = 0
            while self._waiting and len(batch) < self.most_at_once and size_bytes < self.most_bytes_at_once:
                batch.append(self._waiting.popleft())
                size_bytes += batch[-1].size_bytes
            return batch
