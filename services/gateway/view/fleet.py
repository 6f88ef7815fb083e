"""Nodes and replicas as they last spoke: in memory, since their topics say it all again at every start."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from shared.bus.port import Record
from shared.contracts.deployments import ReplicaState, ReplicaStatus
from shared.contracts.message import Message
from shared.contracts.nodes import NodeHeartbeat, Role, node_key
from shared.contracts.topics import Topic

SILENT_AFTER_S = 30.0
"""A ready replica speaks every two seconds, a node every five. Nobody takes back what a lost machine said last."""
ENDED = (ReplicaState.failed, ReplicaState.stopped)


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
        self._all_shown: set[Topic] = set()

    def all_shown(self, topic: Topic) -> None:
        """Its past is behind: what comes now was said just now."""
        self._all_shown.add(topic)

    def on_heartbeat(self, record: Record) -> None:
        with self._lock:
            match record.message:
                case None:
                    self._nodes.pop(record.key, None)
                case NodeHeartbeat() as beat:
                    self._nodes[record.key] = Heard(beat, self._said_at_s(record.topic, beat))

    def on_replica(self, record: Record) -> None:
        with self._lock:
            match record.message:
                case None:
                    self._replicas.pop(record.key, None)
                case ReplicaStatus() as status:
                    self._replicas[record.key] = status, self._said_at_s(record.topic, status)

    def nodes(self) -> list[Heard]:
        with self._lock:
            return [self._nodes[key] for key in sorted(self._nodes)]

    def replicas(self, tenant: str, deployment: str) -> list[ReplicaStatus]:
        """As they last said; a ready one that fell silent counts as failed, and any whose node did."""
        with self._lock:
            heard = [self._replicas[key] for key in sorted(self._replicas)]
        mine = [(one, at_s) for one, at_s in heard if (one.tenant, one.deployment) == (tenant, deployment)]
        return [self._now(one, time.monotonic() - at_s) for one, at_s in mine]

    def _said_at_s(self, topic: Topic, message: Message) -> float:
        """By our own clock. A word from the topic's past counts by its own date: who said it may be long gone."""
        age_s = 0.0 if topic in self._all_shown else (datetime.now(UTC) - message.at).total_seconds()
        return time.monotonic() - max(0.0, age_s)

    def _now(self, status: ReplicaStatus, silent_s: float) -> ReplicaStatus:
        if silent_s < SILENT_AFTER_S or status.state in ENDED:
            return status
        node = self._nodes.get(node_key(status.node, Role.inference))
        if node is None or node.silent_s >= SILENT_AFTER_S:
            return status.changed(state=ReplicaState.failed, reason=f"its node {status.node} does not answer")
        if status.state is not ReplicaState.ready:
            return status
        return status.changed(state=ReplicaState.failed, reason=f"nothing was heard of it for {silent_s:.0f} s")
