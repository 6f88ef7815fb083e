"""One partition in this process: what was read of it, in order, on its way to the handler."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from kafka.errors import KafkaError

from shared.bus.delivery import GroupDelivery, RawRecord
from shared.bus.port import BrokenRecord, BusError, Handle
from shared.contracts.topics import Topic

log = logging.getLogger("llmos.bus")

MOST_WAITING = 1000
MOST_WAITING_BYTES = 4 * 2**20
"""Past either of these nothing more is read of the partition for a while."""
COMMIT_AGAIN_S = 0.2
LAST_COMMIT_S = 3.0
"""How long a lane that ends insists on saying how far it came."""


class Lane:
    """Its thread lives while there is something to handle, so one that fails or waits holds up no other partition."""

    def __init__(
        self,
        topic: Topic,
        group: str,
        handle: Handle,
        on_broken: Callable[[BrokenRecord], None] | None,
        max_batch: int,
        commit: Callable[[int], None],
        entomb: Callable[[RawRecord, str], None],
    ) -> None:
        self.stopping = threading.Event()
        self._name = f"bus:{topic.name}:{group}"
        self._max_batch = max_batch
        self._commit_offset = commit
        self._entomb = entomb
        self._delivery = GroupDelivery(topic, group, handle, on_broken, self, self.stopping)
        self._lock = threading.Lock()
        self._waiting: deque[RawRecord] = deque()
        self._waiting_bytes = 0
        self._thread: threading.Thread | None = None
        self._committed = 0
        self._lost = False

    def add(self, records: Sequence[RawRecord]) -> None:
        with self._lock:
            self._waiting.extend(records)
            self._waiting_bytes += sum(len(record.raw or b"") for record in records)
            if self._thread is None and not self.stopping.is_set():
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def is_full(self) -> bool:
        with self._lock:
            return len(self._waiting) >= MOST_WAITING or self._waiting_bytes >= MOST_WAITING_BYTES

    def stop(self, *, lost: bool = False) -> None:
        """End after the batch at hand. `lost`: the partition is another's already, so nothing more is acknowledged."""
        self._lost = self._lost or lost
        self.stopping.set()

    def is_busy(self) -> bool:
        """Whether its handler may still run."""
        with self._lock:
            return self._thread is not None

    def runs_here(self) -> bool:
        """Whether this is its thread."""
        return self._thread is threading.current_thread()

    def acknowledge(self, records: Sequence[RawRecord]) -> None:
        self._commit(records[-1].position.offset + 1)

    def bury(self, record: RawRecord, reason: str) -> None:
        """Only into the DLQ: what lies before it in its batch may not be handled yet, and places are not skipped."""
        self._insist(lambda: self._entomb(record, reason))

    def _run(self) -> None:
        while batch := self._next():
            if self._delivery.deliver(batch):
                try:
                    self._commit(batch[-1].position.offset + 1)
                except Exception as error:  # whatever it is: a lane whose thread has died would seem busy for ever
                    log.info("%s: the place is not saved, so what was handled comes again: %s", self._name, error)

    def _next(self) -> list[RawRecord]:
        """The next batch. Empty when the thread ends."""
        with self._lock:
            if self.stopping.is_set() or not self._waiting:
                self._thread = None
                return []
            batch = [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]
            self._waiting_bytes -= sum(len(record.raw or b"") for record in batch)
            return batch

    def _commit(self, offset: int) -> None:
        if offset > self._committed:
            self._insist(lambda: self._commit_offset(offset))
            self._committed = offset

    def _insist(self, deed: Callable[[], None]) -> None:
        """The work is done: an outage or a rebalance must not make it done again. Given up some time after the end."""
        give_up_at: float | None = None
        while True:
            try:
                if self._lost:
                    raise BusError("the partition has gone to another member of the group")
                return deed()
            except (BusError, KafkaError, RuntimeError):
                if self.stopping.is_set():
                    give_up_at = give_up_at or time.monotonic() + LAST_COMMIT_S
                if self._lost or (give_up_at and time.monotonic() > give_up_at):
                    raise
                time.sleep(COMMIT_AGAIN_S)
