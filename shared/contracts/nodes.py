"""Nodes: what a machine offers, and what runs on it now."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from shared.contracts.message import Message, Value


class Role(StrEnum):
    trainer = "trainer"
    inference = "inference"


class Device(Value):
    """One accelerator. `index` is what CUDA_VISIBLE_DEVICES takes."""

    index: int
    kind: str
    memory_bytes: int


class Capacity(Value):
    """What a node has for this role. `slots`: how many attempts may run at once where there are no devices."""

    cpus: float
    memory_bytes: int
    devices: list[Device] = Field(default_factory=list)
    slots: int = 1


class RunRef(Value):
    """A run that a worker holds at this moment."""

    job_id: str
    attempt: int
    rank: int
    run_id: str


class NodeHeartbeat(Message):
    """Sent every 5 s and at every change. Key: `node/role`.

    `boot_id` is new for every process start: a run that a new boot does not list is gone.
    `stopping` says that this is the last word of an orderly stop.
    """

    node: str
    role: Role
    boot_id: str
    capacity: Capacity
    runs: list[RunRef] = Field(default_factory=list)
    replicas: list[str] = Field(default_factory=list)
    version: str = ""
    stopping: bool = False
    seq: int = 0
    """Grows by one with every heartbeat of a boot."""


def node_key(node: str, role: Role) -> str:
    return f"{node}/{role}"
