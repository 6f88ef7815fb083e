"""Inference on the wire: requests to one replica's inbox, and the frames of their answers.

These are msgspec structs in MessagePack, not bus messages: they are many, small and not durable.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import msgspec

WIRE_VERSION = 1


class Request(msgspec.Struct, frozen=True, tag="request"):
    """One HTTP request, addressed to one replica.

    `body` is the client's own but for `model`, which names an immutable version (`name@3`).
    `timeout_ms` counts from the replica's receipt, by its monotonic clock.
    """

    id: str
    attempt: int
    path: str
    body: bytes
    reply_to: str
    method: str = "POST"
    headers: list[tuple[bytes, bytes]] = []
    timeout_ms: int | None = None
    tenant: str = "default"
    traceparent: str | None = None


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Stop working for this request: its client left, or another replica answers it."""

    id: str
    attempt: int


class FrameKind(IntEnum):
    start = 0
    """data: MessagePack of `(status, [(header, value), …])`."""
    body = 1
    end = 2
    """The last piece of the body, possibly empty."""
    refused = 3
    """data: MessagePack of Refusal. The replica will not take the request."""
    failed = 4
    """data: a sentence, UTF-8. The replica could not finish."""
    alive = 5
    """data: MessagePack of Load counts `(running, waiting)`. `request` is empty: the replica itself speaks."""


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """One piece of an answer. `seq` counts from 0 within a request's attempt."""

    request: str
    attempt: int
    seq: int
    kind: FrameKind
    data: bytes = b""
    replica: str = ""


class Refusal(msgspec.Struct, frozen=True):
    """Why a replica will not take a request, how many it holds, and when to come again (seconds)."""

    reason: str
    queue: int
    retry_after_s: float
    broken: bool = False
    """The replica has broken down: it ends, and will not take it later either."""


_encoder = msgspec.msgpack.Encoder()
_items = msgspec.msgpack.Decoder(Request | Cancel)
_frames = msgspec.msgpack.Decoder(tuple[int, list[Frame]])


def encode_item(item: Request | Cancel) -> bytes:
    return _encoder.encode(item)


def decode_item(raw: bytes) -> Request | Cancel:
    """Raises msgspec.ValidationError or msgspec.DecodeError."""
    item: Request | Cancel = _items.decode(raw)
    return item


def encode_frames(frames: Sequence[Frame]) -> bytes:
    return _encoder.encode((WIRE_VERSION, frames))


def decode_frames(raw: bytes) -> list[Frame]:
    """Raises msgspec.ValidationError or msgspec.DecodeError."""
    return _frames.decode(raw)[1]
