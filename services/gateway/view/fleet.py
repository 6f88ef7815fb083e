"""Nodes and replicas as they last spoke: in memory, since their topics say it all again at every start."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from shared.bus.port import Record
from shared.contracts.deployments import ReplicaState, ReplicaStatus
from shared.contracts.nodes import NodeHeartbeat

SILENT_AFTER_S = 30.0
"""A ready replica speaks every two seconds. Nobody takes back the word of one whose machine is gone."""


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
        self._replicas: dict[str, tuple[ReplicaStatus, float]] = {}
        """Each replica's last word, and when it came, by our own clock."""

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
                    self._replicas[record.key] = status, time.monotonic()

    def nodes(self) -> list[Heard]:
        with self._lock:
            return [self._nodes[key] for key in sorted(self._nodes)]

    def replicas(self, tenant: str, deployment: str) -> list[ReplicaStatus]:
        """As they last said; a ready one that fell silent counts as failed."""
        with self._lock:
            heard = [self._replicas[key] for key in sorted(self._replicas)]
        mine = [(one, at_s) for one, at_s in heard if (one.tenant, one.deployment) == (tenant, deployment)]
        return [_now(one, time.monotonic() - at_s) for one, at_s in mine]


def _now(status: ReplicaStatus, silent_s: float) -> ReplicaStatus:
    if status.state is not ReplicaState.ready or silent_s < SILENT_AFTER_S:
        return status
    reason = f"nothing was heard of it for {silent_s:.0f} s"
    return status.changed(state=ReplicaState.failed, reason=reason)
