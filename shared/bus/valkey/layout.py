"""Where things lie on the server, and how a record is written there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.bus.delivery import RawRecord
from shared.bus.port import Position
from shared.contracts.topics import Topic

TOPICS = "bus:topics"
"""A hash: topic → its shape, fixed by whoever comes first."""
CONSUMER = "main"
"""The one consumer that every group has."""

_SEQUENCE_BITS = 20


def stream(topic: Topic) -> str:
    """The records of a topic; for a compacted one, its changes."""
    return f"bus:log:{topic.name}"


def table(topic: Topic) -> str:
    """The latest record of each key of a compacted topic, each as `id data`."""
    return f"bus:table:{topic.name}"


def shape(topic: Topic) -> str:
    return "table" if topic.compacted else "log"


def producer(name: str) -> str:
    """What a publisher sent last: sequence number → entry id."""
    return f"bus:producer:{name}"


def owner(topic: Topic, group: str) -> str:
    """Which connection reads for a group."""
    return f"bus:owner:{topic.name}:{group}"


def to_position(entry_id: bytes) -> Position:
    """A stream's id `milliseconds-sequence` as one number, which grows with it."""
    milliseconds, _, sequence = entry_id.partition(b"-")
    return Position(0, int(milliseconds) << _SEQUENCE_BITS | int(sequence))


def to_id(position: Position) -> str:
    return f"{position.offset >> _SEQUENCE_BITS}-{position.offset & (1 << _SEQUENCE_BITS) - 1}"


def entries(answer: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries in the answer of a read of one stream; the fields of one that was deleted are empty."""
    return [(entry_id, fields or {}) for entry_id, fields in answer[0][1]] if answer else []


def text(value: bytes | str | None) -> str:
    """What a client without `decode_responses` answers, as text; empty for nothing."""
    return value.decode() if isinstance(value, bytes) else value or ""


def from_entry(entry_id: bytes, fields: Mapping[bytes, bytes]) -> RawRecord:
    return RawRecord(fields.get(b"k", b"").decode(errors="replace"), to_position(entry_id), fields.get(b"d"))


def from_table(key: bytes, value: bytes) -> RawRecord:
    entry_id, _, raw = value.partition(b" ")
    return RawRecord(key.decode(errors="replace"), to_position(entry_id), raw)
