"""What the agent and a replica's process say to each other over their socket.

Both say their whole state every time, never a change of it: a message that is repeated or lost does no harm. The
socket keeps message boundaries (SOCK_SEQPACKET) and its end is the other side's death.
"""

from __future__ import annotations

import socket
from enum import StrEnum
from typing import Any

import msgspec

MAX_MESSAGE_BYTES = 1 << 17
MAX_REASON = 500
MAX_ADAPTER_REASON = 120
"""A report names up to 256 refused adapters, and has to fit in one message."""


class ReplicaSpec(msgspec.Struct, frozen=True):
    """All that a replica's process must know to start, in a file whose path is its argument."""

    replica_id: str
    served_name: str
    """`name@version` of the base model."""
    model_folder: str
    engine: str
    engine_args: dict[str, Any]
    max_loras: int
    max_lora_rank: int
    max_queue: int
    threads: int
    devices: list[int]
    restarts: int
    cache_folder: str
    """Where the engine may keep what it works out about a model, for the next start."""
    log_file: str = ""
    """Where what the replica and its engine say is written; the launcher knows."""


class Wishes(msgspec.Struct, frozen=True):
    """What the agent wants: these adapters (ref → folder), and whether to finish what runs and end."""

    adapters: dict[str, str] = {}
    drain: bool = False


class Phase(StrEnum):
    loading = "loading"
    ready = "ready"
    broken = "broken"
    """It can never work as it is specified; starting it again is of no use."""
    crashed = "crashed"
    """Its engine has broken down; another start may go better."""


class Report(msgspec.Struct, frozen=True):
    """What a replica says of itself, at every change and every two seconds once ready."""

    phase: Phase
    percent: float | None = None
    reason: str = ""
    max_model_len: int | None = None
    adapters: list[str] = []
    failed_adapters: dict[str, str] = {}
    running: int = 0
    waiting: int = 0


_encode = msgspec.json.Encoder().encode
_reports = msgspec.json.Decoder(Report)
_wishes = msgspec.json.Decoder(Wishes)
_specs = msgspec.json.Decoder(ReplicaSpec)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """The agent's end and the replica's."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def encode(message: ReplicaSpec | Wishes | Report) -> bytes:
    return _encode(message)


def decode_report(raw: bytes) -> Report:
    return _reports.decode(raw)


def decode_wishes(raw: bytes) -> Wishes:
    return _wishes.decode(raw)


def decode_spec(raw: bytes) -> ReplicaSpec:
    return _specs.decode(raw)
