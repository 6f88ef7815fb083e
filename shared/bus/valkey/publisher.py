"""Publishing with group commit: what is waiting goes to the server in one step, which costs one sync of its disk."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from uuid import uuid4

import msgspec
import redis

from shared import valkey
from shared.bus import publisher
from shared.bus.delivery import Pause
from shared.bus.port import IncompatibleBus, Position
from shared.bus.publisher import DELIVERY_TIMEOUT_S, MAX_IN_FLIGHT, Outgoing
from shared.bus.valkey import layout
from shared.bus.valkey.scripts import PUBLISH
from shared.bus.valkey.shape import check_shape
from shared.bus.valkey.trimming import Trimmer


class Publisher(publisher.Publisher):
    """Sends on one connection, so the order per key is the order of `publish`.

    While the server is away a batch is sent again, and the server knows which of it it has: within the life of a
    publisher nothing is doubled. Past `timeout_s` the future fails; the message may then still be there.
    """

    most_at_once = 512
    most_bytes_at_once = 1 << 20

    def __init__(
        self, url: str, client_id: str, *, timeout_s: float = DELIVERY_TIMEOUT_S, max_in_flight: int = MAX_IN_FLIGHT
    ) -> None:
        super().__init__(timeout_s=timeout_s, max_in_flight=max_in_flight)
        self._server = valkey.client(url, client_name=f"{client_id}:publish")
        self._marker = layout.producer(f"{client_id}:{uuid4().hex[:12]}")
        self._publish = self._server.register_script(PUBLISH)
        self._trimmer = Trimmer(self._server)
        self._known: set[tuple[str, bool]] = set()
        """Topics and shapes that the server was asked about."""

    def _send(self, batch: Sequence[Outgoing]) -> None:
        pause = Pause(threading.Event())
        again = False
        while batch:
            try:
                batch = self._without_misshapen(batch)
                positions = self._commit(batch, again)
            except redis.RedisError as error:
                self._outage.began(error)
                again = True
                batch = self._without_expired(batch, error)
                pause.wait()
            else:
                self._outage.ended()
                self._settle(batch, positions)
                self._trimmer.trim_when_due(outgoing.topic for outgoing in batch)
                return

    def _commit(self, batch: Sequence[Outgoing], again: bool) -> list[Position]:
        entries = msgspec.msgpack.encode([_on_wire(outgoing) for outgoing in batch])
        ids: Sequence[bytes] = self._publish(keys=[self._marker], args=[int(again), entries]) if batch else []
        return [layout.to_position(entry_id) for entry_id in ids]

    def _without_misshapen(self, batch: Sequence[Outgoing]) -> Sequence[Outgoing]:
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

    def _without_expired(self, batch: Sequence[Outgoing], error: Exception) -> Sequence[Outgoing]:
        """The batch less what has waited too long. What waits behind it expires as well."""
        now = time.monotonic()
        with self._changed:
            expired = [outgoing for outgoing in self._waiting if outgoing.deadline <= now]
            self._waiting = deque(outgoing for outgoing in self._waiting if outgoing.deadline > now)
        self._settle([outgoing for outgoing in batch if outgoing.deadline <= now] + expired, self._late(error))
        return [outgoing for outgoing in batch if outgoing.deadline > now]

    def _disconnect(self) -> None:
        self._server.close()


def _on_wire(outgoing: Outgoing) -> tuple[str, str, str | bool, str, str | bool]:
    topic = outgoing.topic
    table = layout.table(topic) if topic.compacted else False
    data = False if outgoing.raw is None else outgoing.raw.decode()
    return str(outgoing.number), layout.stream(topic), table, outgoing.key, data
