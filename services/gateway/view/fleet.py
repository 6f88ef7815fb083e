"""Nodes and replicas as they last spoke: in memory, since their topics say it all again at every start."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from shared.bus.port import Record
from shared.contracts.deployments import ReplicaStatus
from shared.contracts.nodes import NodeHeartbeat


@dataclass(frozen=True)
class Heard:
    """A node's last heartbeat, and when it came, by our own clock."""

    heartbeat: NodeHeartbeat
    at_s: float

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self.at_s


class Fleet:
    """Written by the consumers' threads, read by routes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nodes: dict[str, Heard] = {}
        self._replicas: dict[str, ReplicaStatus] = {}

    def on_heartbeat(self, record: Record) -> None:
        with self._lock:
            match record.message:
                case None:
                    self._nodes.pop(record.key, None)
                case NodeHeartbeat() as beat:
                    self._nodes[record.key] = Heard(beat, time.monotonic())

    def on_replica(self, record: Record) -> None:
        with self._lock:
            match record.message:
                case None:
                    self._replicas.pop(record.key, None)
                case ReplicaStatus() as status:
                    self._replicas[record.key] = status

    def nodes(self) -> list[Heard]:
        with self._lock:
            return [self._nodes[key] for key in sorted(self._nodes)]

    def replicas(self, tenant: str, deployment: str) -> list[ReplicaStatus]:
        with self._lock:
            mine = [
                status
                for status in self._replicas.values()
                if status.tenant == tenant and status.deployment == deployment
            ]
        return sorted(mine, key=lambda status: status.replica_id)
