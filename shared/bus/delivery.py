"""What happens to records between the server and a handler: the same for every adapter of the bus.

An adapter brings raw records in order and two deeds, `acknowledge` and `bury`; who may see what, what is skipped, what
goes to the DLQ and what pauses is decided here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.backoff import Backoff
from shared.bus.port import BrokenRecord, Handle, Poison, Position, Record, Subscription

# The whole vocabulary is registered before anything is decoded: a type that nobody has imported would pass for unknown.
from shared.contracts import artifacts as _artifacts  # noqa: F401
from shared.contracts import bookmarks as _bookmarks  # noqa: F401
from shared.contracts import deployments as _deployments  # noqa: F401
from shared.contracts import jobs as _jobs  # noqa: F401
from shared.contracts import nodes as _nodes  # noqa: F401
from shared.contracts.message import DecodeError, UnknownType, decode
from shared.contracts.topics import Topic
from shared.starting import first_line

log = logging.getLogger("llmos.bus")

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 3.0
WAKE_EVERY_S = 0.05


@dataclass(frozen=True)
class RawRecord:
    """One record as the server keeps it. `raw` is None for a tombstone."""

    key: str
    position: Position
    raw: bytes | None


class Pause:
    """Waits that grow from try to try and end at once when `stopping` is set."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)

    def wait(self) -> None:
        self._stopping.wait(self._backoff.next_s())

    def reset(self) -> None:
        self._backoff.reset()


class Worker:
    """A thread that runs `body` until `stopping` is set; `wake` ends what it waits for: a Subscription."""

    def __init__(
        self,
        name: str,
        body: Callable[[], None],
        stopping: threading.Event,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.stopping = stopping
        self._wake = wake
        self._thread = threading.Thread(target=body, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop after the batch at hand. Returns when no handler runs any more."""
        self.stopping.set()
        if self._thread is threading.current_thread():
            return  # a handler closes its own subscription: it stops when the handler returns
        while self._thread.is_alive():
            self._wake()  # again, since it may just have begun to wait
            self._thread.join(WAKE_EVERY_S)


class Startable(Subscription, Protocol):
    """A subscription as its bus holds it."""

    stopping: threading.Event

    def start(self) -> None: ...


class Subscriptions:
    """Those of a bus that are open; any thread may start one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[Startable] = []

    def start(self, one: Startable) -> Subscription:
        with self._lock:
            self._open = [other for other in self._open if not other.stopping.is_set()] + [one]
        one.start()
        return one

    def close(self) -> None:
        with self._lock:
            still_open = self._open
        for one in still_open:
            one.stopping.set()  # all at once: each takes a moment
        for one in still_open:
            one.close()


class Deeds(Protocol):
    """What the server does for a group. Both are durable when they return."""

    def acknowledge(self, records: Sequence[RawRecord]) -> None: ...

    def bury(self, record: RawRecord, reason: str) -> None:
        """Put into the DLQ, and acknowledge."""


class GroupDelivery:
    """Takes batches of one topic to one group's handler until everything in them is dealt with."""

    def __init__(
        self,
        topic: Topic,
        group: str,
        handle: Handle,
        on_broken: Callable[[BrokenRecord], None] | None,
        deeds: Deeds,
        stopping: threading.Event,
    ) -> None:
        self._topic = topic
        self._group = group
        self._handle = handle
        self._on_broken = on_broken
        self._deeds = deeds
        self._stopping = stopping
        self._commands = topic.name.endswith(".commands")

    def deliver(self, batch: Sequence[RawRecord]) -> bool:
        """Whether all of it was handled or buried; False when the subscription stops first.

        Failures pause and are tried again.
        """
        left = list(batch)
        pause = Pause(self._stopping)
        failures = 0
        while left and not self._stopping.is_set():
            try:
                left = self._advance(left)
            except Exception as error:
                failures += 1
                self._say(left[0], error, failures)
                pause.wait()
            else:
                pause.reset()
        return not left

    def _say(self, record: RawRecord, error: Exception, failures: int) -> None:
        """The first failure with its traceback, the next ones in a line."""
        log.warning(
            "%s pauses at %s for group %s (failure %s), and is tried again: %s",
            self._topic.name,
            record.position,
            self._group,
            failures,
            first_line(error),
            exc_info=error if failures == 1 and not isinstance(error, DecodeError) else None,
        )

    def _advance(self, batch: list[RawRecord]) -> list[RawRecord]:
        """Deal with the front of the batch, as far as it decodes. Returns what is left. Raises what pauses."""
        records, seen, obstacle = self._front(batch)
        if seen:
            try:
                if records:
                    self._handle(records)
            except Poison as poison:
                return self._bury_poison(poison, batch, seen)
            self._deeds.acknowledge(batch[:seen])
            return batch[seen:]
        assert obstacle is not None
        if isinstance(obstacle, UnknownType):
            raise obstacle
        self._bury_broken(batch[0], obstacle)
        return batch[1:]

    def _front(self, batch: Sequence[RawRecord]) -> tuple[list[Record], int, DecodeError | None]:
        """The records up to what stands in the way, how many raw ones they make up, and what stands there."""
        records: list[Record] = []
        for seen, raw in enumerate(batch):
            try:
                message = None if raw.raw is None else decode(raw.raw)
            except UnknownType as error:
                if self._commands:
                    return records, seen, error
                log.info("%s at %s is skipped: %s", self._topic.name, raw.position, error)
            except DecodeError as error:
                return records, seen, error
            else:
                records.append(Record(self._topic, raw.key, raw.position, message))
        return records, len(batch), None

    def _bury_poison(self, poison: Poison, batch: list[RawRecord], seen: int) -> list[RawRecord]:
        at = poison.record.position
        victim = next((raw for raw in batch[:seen] if raw.position == at), None)
        if victim is None:
            raise RuntimeError(f"the handler called {at} poison, which is not in its batch") from poison
        log.error("%s at %s goes to the DLQ: %s", self._topic.name, at, poison.reason)
        self._deeds.bury(victim, poison.reason)
        return [raw for raw in batch if raw is not victim]

    def _bury_broken(self, raw: RawRecord, error: DecodeError) -> None:
        log.error("%s at %s does not decode and goes to the DLQ: %s", self._topic.name, raw.position, error)
        if self._on_broken is not None:
            broken = BrokenRecord(self._topic, raw.key, raw.position, raw.raw or b"", str(error), error.envelope)
            self._on_broken(broken)
        self._deeds.bury(raw, str(error))
