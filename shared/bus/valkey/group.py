"""A group's consumer: everything once, in order; what was read and not acknowledged comes first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import redis

from shared import valkey
from shared.bus.delivery import GroupDelivery, Pause, RawRecord
from shared.bus.port import BrokenRecord, Handle
from shared.bus.valkey import layout
from shared.bus.valkey.ownership import take_over
from shared.bus.valkey.reading import Reader
from shared.bus.valkey.scripts import BURY
from shared.bus.valkey.trimming import now_ms
from shared.contracts.topics import Topic

log = logging.getLogger("llmos.bus")


class GroupReader(Reader):
    """Subscription of one group to one topic."""

    def __init__(
        self,
        url: str,
        client_id: str,
        topic: Topic,
        group: str,
        handle: Handle,
        on_broken: Callable[[BrokenRecord], None] | None,
        max_batch: int,
    ) -> None:
        super().__init__(url, f"{client_id}:{topic.name}:{group}", topic)
        self._stream = layout.stream(topic)
        self._group = group
        self._max_batch = max_batch
        self._deeds = valkey.client(url)
        self._delivery = GroupDelivery(topic, group, handle, on_broken, self, self.stopping)

    def close(self) -> None:
        super().close()
        self._deeds.close()

    def read(self, server: redis.Redis) -> None:
        self._make_group(server)
        if not take_over(server, self.topic, self._group, self.stopping):
            return
        after: bytes | str = "0"  # first what an earlier life has read and not acknowledged
        while not self.stopping.is_set():
            entries = self._next(server, after)
            if after != ">":
                after = entries[-1][0] if entries else ">"
            if gone := [entry_id for entry_id, fields in entries if not fields]:
                server.xack(self._stream, self._group, *gone)
            batch = [layout.from_entry(entry_id, fields) for entry_id, fields in entries if fields]
            self._delivery.deliver(batch)

    def acknowledge(self, records: Sequence[RawRecord]) -> None:
        ids = [layout.to_id(record.position) for record in records]
        self._insist(lambda: self._deeds.xack(self._stream, self._group, *ids))

    def bury(self, record: RawRecord, reason: str) -> None:
        self._insist(lambda: self._bury(record, reason))

    def _bury(self, record: RawRecord, reason: str) -> None:
        dlq = self.topic.dlq
        if self.topic.name.endswith(".dlq"):
            self._deeds.xack(self._stream, self._group, layout.to_id(record.position))
            return
        assert dlq.retention is not None
        oldest = max(0, now_ms(self._deeds) - int(dlq.retention.total_seconds() * 1000))
        data = b"" if record.raw is None else record.raw
        args: list[str | bytes | int] = [self._group, layout.to_id(record.position), record.key, data, reason, oldest]
        self._deeds.register_script(BURY)(keys=[self._stream, layout.stream(dlq)], args=args)

    def _insist(self, deed: Callable[[], object]) -> None:
        """The work is done: an outage must not make it done again. Given up only when the subscription closes."""
        pause = Pause(self.stopping)
        while True:
            try:
                deed()
                return
            except redis.RedisError as error:
                if self.stopping.is_set():
                    raise
                self.outage.began(error)
                pause.wait()

    def _next(self, server: redis.Redis, after: bytes | str) -> Sequence[tuple[bytes, dict[bytes, bytes]]]:
        found = server.xreadgroup(
            self._group, layout.CONSUMER, {self._stream: after}, count=self._max_batch, block=valkey.BLOCK_MS
        )
        self.answered()
        return layout.entries(found)

    def _make_group(self, server: redis.Redis) -> None:
        try:
            server.xgroup_create(self._stream, self._group, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
