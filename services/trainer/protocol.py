"""What a child process and its supervisor say to each other: one JSON object a line, on two inherited pipes.

To the child (control): Begin, Uploaded. The end of that pipe means that the trainer is gone, and the child ends itself.
From the child (reports): ProgressMade, CheckpointMade, and one last word: Done, Failed or Halted.
What the child prints is no part of it: stdout and stderr are the job's log.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Gang(msgspec.Struct, frozen=True):
    """This child's seat among the ranks of its attempt. `meeting` is `host:port`; `rendezvous` is the attempt's own.

    `local_rank` of the `local_size` ranks of one node; `node_rank` counts the nodes.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    node_rank: int
    meeting: str
    rendezvous: str
    timeout_s: float
    backend: str


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """Everything is there: go. `inputs` and `resume_from` are local folders."""

    spec: dict[str, Any]
    inputs: dict[str, str]
    workdir: str
    attempt: int = 1
    resume_from: str | None = None
    allow_local_models: bool = True
    allow_hub: bool = True
    gang: Gang | None = None
    """None where one process does it all."""


class Uploaded(msgspec.Struct, frozen=True, tag="uploaded"):
    """The checkpoint of that step is dealt with: its folder may go after the next one."""

    step: int


class ProgressMade(msgspec.Struct, frozen=True, tag="progress"):
    step: int
    total_steps: int | None = None
    tokens: int = 0
    eta_s: float | None = None
    metrics: dict[str, float] = {}


class CheckpointMade(msgspec.Struct, frozen=True, tag="checkpoint"):
    step: int
    folder: str
    metrics: dict[str, float] = {}


class OutputMade(msgspec.Struct, frozen=True):
    name: str
    kind: str
    folder: str
    metadata: dict[str, Any] = {}
    parents: list[str] = []
    metrics: dict[str, float] = {}


class Done(msgspec.Struct, frozen=True, tag="done"):
    outputs: list[OutputMade]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The recipe gave up. `reason` is a FailureReason."""

    reason: str
    message: str
    retryable: bool
    hint: str = ""
    param: str | None = None


class Halted(msgspec.Struct, frozen=True, tag="halted"):
    """It stopped because it was asked to."""


Order = Begin | Uploaded
Report = ProgressMade | CheckpointMade | Done | Failed | Halted

_encoder = msgspec.json.Encoder(enc_hook=str)
_orders = msgspec.json.Decoder(Order)
_reports = msgspec.json.Decoder(Report)


def encode(message: Order | Report) -> bytes:
    """One line. What JSON does not know (paths, enums) goes as its text."""
    return _encoder.encode(message) + b"\n"


def decode_order(line: bytes) -> Order:
    """Raises msgspec.DecodeError."""
    order: Order = _orders.decode(line)
    return order


def decode_report(line: bytes) -> Report:
    """Raises msgspec.DecodeError."""
    report: Report = _reports.decode(line)
    return report
