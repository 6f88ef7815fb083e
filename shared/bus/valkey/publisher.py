"""Publishing with group commit: what is waiting goes to the server in one step, which costs one sync of its disk."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from uuid import uuid4

import msgspec
import redis

from shared import valkey
from shared.bus.delivery import Pause
from shared.bus.port import BusError, BusFull, BusUnavailable, IncompatibleBus, Position
from shared.bus.valkey import layout
from shared.bus.valkey.scripts import PUBLISH
from shared.bus.valkey.shape import check_shape
from shared.bus.valkey.trimming import Trimmer
from shared.contracts.topics import Topic

log = logging.getLogger("llmos.bus")

DELIVERY_TIMEOUT_S = 15.0
MAX_IN_FLIGHT = 10_000
MAX_IN_FLIGHT_BYTES = 64 << 20
MAX_BATCH = 512
MAX_BATCH_BYTES = 1 << 20


@dataclass(slots=True)
class _Outgoing:
    topic: Topic
    key: str
    data: str | None
    sequence: str
    deadline: float
    future: Future[Position] = field(default_factory=Future)

    @property
    def size_bytes(self) -> int:
        return len(self.data or "") + len(self.key)

    def on_wire(self) -> tuple[str, str, str | bool, str, str | bool]:
        table = layout.table(self.topic) if self.topic.compacted else False
        return self.sequence, layout.stream(self.topic), table, self.key, self.data if self.data is not None else False

    def fail(self, error: BusError) -> None:
        self.future.set_exception(error)


class Publisher:
    """Sends on one connection from one thread, so the order per key is the order of `publish`.

    While the server is away a batch is sent again, and the server knows which of it it has: within the life of a
    publisher nothing is doubled. Past `timeout_s` the future fails; the message may then still be there.
    """

    def __init__(
        self, url: str, client_id: str, *, timeout_s: float = DELIVERY_TIMEOUT_S, max_in_flight: int = MAX_IN_FLIGHT
    ) -> None:
        self._server = valkey.client(url, client_name=f"{client_id}:publish")
        self._marker = layout.producer(f"{client_id}:{uuid4().hex[:12]}")
        self._publish = self._server.register_script(PUBLISH)
        self._trimmer = Trimmer(self._server)
        self._outage = valkey.Outage(log, "publishing")
        self._timeout_s = timeout_s
        self._max_in_flight = max_in_flight
        self._sequence = count(1)
        self._known: set[tuple[str, bool]] = set()
        """Topics and shapes that the server was asked about."""
        self._changed = threading.Condition()
        self._waiting: deque[_Outgoing] = deque()
        self._in_flight = 0
        self._in_flight_bytes = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="bus:publish", daemon=True)

    def publish(self, topic: Topic, key: str, raw: bytes | None) -> Future[Position]:
        """As Bus.publish, of an encoded message."""
        data = None if raw is None else raw.decode()
        outgoing = _Outgoing(topic, key, data, "", time.monotonic() + self._timeout_s)
        outgoing.future.set_running_or_notify_cancel()  # a caller that stops waiting takes nothing back
        with self._changed:
            if refused := self._refusal():
                outgoing.fail(refused)
                return outgoing.future
            outgoing.sequence = str(next(self._sequence))
            self._waiting.append(outgoing)
            self._in_flight += 1
            self._in_flight_bytes += outgoing.size_bytes
            if self._thread.ident is None:
                self._thread.start()
            self._changed.notify()
        return outgoing.future

    def close(self) -> None:
        """Send what is in flight, which lasts no longer than the delivery timeout."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()
        self._server.close()

    def _refusal(self) -> BusError | None:
        if self._closing:
            return BusUnavailable("the bus is closed in this process")
        if self._in_flight >= self._max_in_flight or self._in_flight_bytes >= MAX_IN_FLIGHT_BYTES:
            return BusFull(f"{self._in_flight} messages wait for the bus: its server is away or slow; try again later")
        return None

    def _run(self) -> None:
        while batch := self._next_batch():
            try:
                self._send(batch)
            except Exception as error:
                log.exception("a batch of %s messages could not be sent", len(batch))
                open_ones = [outgoing for outgoing in batch if not outgoing.future.done()]
                self._settle(open_ones, BusUnavailable(f"the message could not be sent: {error}"))

    def _next_batch(self) -> list[_Outgoing]:
        """What is waiting, up to the bounds of a batch. Empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            batch: list[_Outgoing] = []
            size_bytes = 0
            while self._waiting and len(batch) < MAX_BATCH and size_bytes < MAX_BATCH_BYTES:
                batch.append(self._waiting.popleft())
                size_bytes += batch[-1].size_bytes
            return batch

    def _send(self, batch: list[_Outgoing]) -> None:
        pause = Pause(threading.Event())
        again = False
        while batch:
            try:
                batch = self._without_misshapen(batch)
                ids = self._commit(batch, again)
            except redis.RedisError as error:
                self._outage.began(error)
                again = True
                batch = self._without_expired(batch, error)
                pause.wait()
            else:
                self._outage.ended()
                self._settle(batch, ids)
                self._trimmer.trim_when_due(outgoing.topic for outgoing in batch)
                return

    def _commit(self, batch: Sequence[_Outgoing], again: bool) -> Sequence[bytes]:
        entries = msgspec.msgpack.encode([outgoing.on_wire() for outgoing in batch])
        ids: Sequence[bytes] = self._publish(keys=[self._marker], args=[int(again), entries]) if batch else []
        return ids

    def _without_misshapen(self, batch: list[_Outgoing]) -> list[_Outgoing]:
        """The batch less what goes to a topic that has another shape on the server."""
        for topic in {outgoing.topic for outgoing in batch}:
            shape = topic.name, topic.compacted
            if shape in self._known:
                continue
            try:
                check_shape(self._server, topic)
            except IncompatibleBus as error:
                self._settle([outgoing for outgoing in batch if outgoing.topic == topic], error)
                batch = [outgoing for outgoing in batch if outgoing.topic != topic]
            else:
                self._known.add(shape)
        return batch

    def _without_expired(self, batch: list[_Outgoing], error: Exception) -> list[_Outgoing]:
        """The batch less what has waited too long. What waits behind it expires as well."""
        now = time.monotonic()
        late = BusUnavailable(f"the bus did not take the message within {self._timeout_s:g} s: {error}")
        with self._changed:
            expired = [outgoing for outgoing in self._waiting if outgoing.deadline <= now]
            self._waiting = deque(outgoing for outgoing in self._waiting if outgoing.deadline > now)
        self._settle([outgoing for outgoing in batch if outgoing.deadline <= now] + expired, late)
        return [outgoing for outgoing in batch if outgoing.deadline > now]

    def _settle(self, batch: Sequence[_Outgoing], result: Sequence[bytes] | BusError) -> None:
        with self._changed:
            self._in_flight -= len(batch)
            self._in_flight_bytes -= sum(outgoing.size_bytes for outgoing in batch)
        if isinstance(result, BusError):
            for outgoing in batch:
                outgoing.fail(result)
        else:
            for outgoing, entry_id in zip(batch, result, strict=True):
                outgoing.future.set_result(layout.to_position(entry_id))
