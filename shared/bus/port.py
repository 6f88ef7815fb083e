"""The durable bus: what every adapter promises. `tests/contract/test_bus.py` holds them all to it.

The port is synchronous. Consumers run on threads of the adapter's own; asyncio code meets a publish through
`asyncio.wrap_future`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, Self

from shared.contracts.message import Envelope, Message
from shared.contracts.topics import Topic
from shared.starting import Uninitialized


@dataclass(frozen=True, order=True)
class Position:
    """Where a record lies in its topic. Within one key (so, within one partition) positions only grow."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The position in `partition-offset`. Raises ValueError."""
        partition, _, offset = text.partition("-")
        return cls(int(partition), int(offset))


@dataclass(frozen=True)
class Record:
    """One message of a topic. `message` is None for a tombstone."""

    topic: Topic
    key: str
    position: Position
    message: Message | None


@dataclass(frozen=True)
class BrokenRecord:
    """A record whose bytes do not decode: it goes to the DLQ, after the consumer was told."""

    topic: Topic
    key: str
    position: Position
    raw: bytes
    reason: str
    envelope: Envelope | None
    """There when only the body is broken."""


WIPE_PATIENCE_S = 120.0
"""Twice as long as the owners of the topics take to notice that one was wiped, and to fill it again."""


class BusError(Exception):
    """The bus's errors.

    BusError
    ├── BusUnavailable       the server is away; the message was not accepted
    │   ├── BusUninitialized  it is there, and a topic is missing
    │   └── BusRefuses        it is there, and does not let us in, or not do what we need
    ├── BusFull              too much is in flight: the server is away or slow
    └── IncompatibleBus      the server or a topic is not what this version needs
    """


class BusUnavailable(BusError):
    """The server did not accept the message in time."""


class BusUninitialized(BusUnavailable, Uninitialized):
    """A topic is missing that `llmos admin init` makes."""


class BusRefuses(BusUnavailable):
    """The user or the password is wrong, or the user lacks a right: trying again does not help."""


class BusFull(BusError):
    """The bound on messages in flight is reached."""


class IncompatibleBus(BusError):
    """A topic has another shape (partitions, compaction) than the vocabulary says."""


class Poison(Exception):
    """A handler raises this for the one record that can never be handled: it goes to the DLQ, the rest goes on."""

    def __init__(self, record: Record, reason: str) -> None:
        super().__init__(reason)
        self.record = record
        self.reason = reason


Handle = Callable[[Sequence[Record]], None]
"""Handles a batch. Returning acknowledges it; any exception but Poison pauses the partition, and it comes again."""


class Subscription(Protocol):
    def close(self) -> None:
        """Stop after the batch at hand. Returns when no handler runs any more."""


class Bus(Protocol):
    def publish(self, topic: Topic, key: str, message: Message | None) -> Future[Position]:
        """Append; the future is done once the message is durable, or holds a BusError. None is a tombstone."""

    def subscribe(
        self,
        topic: Topic,
        group: str,
        handle: Handle,
        *,
        on_broken: Callable[[BrokenRecord], None] | None = None,
        max_batch: int = 256,
    ) -> Subscription:
        """Every record once per group, at least once after a crash, in order per key, from the earliest kept.

        Unknown types on a `.commands` topic pause the partition (a newer version must handle them); elsewhere they
        are skipped. Records that do not decode are shown to `on_broken` and go to the DLQ.
        """

    def follow(
        self,
        topic: Topic,
        on: Callable[[Record], None],
        caught_up: Callable[[], None] | None = None,
        *,
        patience_s: float = WIPE_PATIENCE_S,
    ) -> Subscription:
        """The latest record of every key of a compacted topic, then every change as it comes.

        `caught_up` is called once, when everything that was there at the start was shown. A record may come twice;
        an exception of `on` is logged and the record is shown again after a pause. Where the topic was wiped, the keys
        it lost are shown as tombstones unless they come again within `patience_s`: what runs need not stop for that.
        """

    def dlq_depth(self, topic: Topic) -> int:
        """Records in the topic's DLQ."""

    def lag(self, topic: Topic, group: str) -> int:
        """Records of the topic that the group has not acknowledged."""

    def ping(self) -> None:
        """Raises BusUnavailable with a sentence when the server does not answer, BusRefuses when it refuses us."""

    def close(self) -> None:
        """Close all subscriptions, send what is in flight, let go of the server."""
