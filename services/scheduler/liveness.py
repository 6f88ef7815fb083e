"""Which nodes are alive and which runs are gone, from heartbeats alone. Time is this process's own monotonic clock.

Silence counts only while this scheduler could have heard: after it has caught up with the heartbeats, and with no gap
since. After a gap of the bus it counts from the first word of anybody, since a bus that answers may not yet be heard.
Safety never hangs on it: a run that was given up wrongly meets the fence.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from services.scheduler.clock import Clock
from services.scheduler.domain import Job
from services.scheduler.inputs import AttemptLost, StopOverdue
from services.scheduler.placement import Node
from shared.contracts.jobs import JobStatus
from shared.contracts.nodes import NodeHeartbeat, Role, RunRef, node_key

GAP_S = 3.0
"""A tick that comes so late says that this process stood still: what it did not hear proves nothing."""
DEAF_TIMES = 3
"""So many times the usual silence after a gap of the bus in which nobody at all was heard: then they are gone."""
UNLISTED_S = 10.0
"""A run that its own node does not list for so long is gone: its last event has had time to arrive."""
RING_AGAIN_S = 10.0
NOT_STARTED_S = 60.0
STOP_OVERDUE_S = 300.0
"""Beside the grace that the worker gives the child: time to save a large checkpoint."""


@dataclass
class Heard:
    """The last word of a node, and when it came."""

    beat: NodeHeartbeat
    at_s: float
    live: bool
    """It came after the topic's past: not a word from before this process listened."""
    boot_began: datetime | None = None
    """When this boot spoke first, by its own clock, if an earlier boot was heard before it."""


@dataclass
class Liveness:
    """Heartbeats come in through `heard` on a thread of the bus; everything else is asked by the tick."""

    clock: Clock
    timeout_s: float
    stop_grace_s: float = 30.0
    on_change: Callable[[], None] = lambda: None
    caught_up: bool = False
    _nodes: dict[str, Heard] = field(default_factory=dict)
    _counted_from_s: float = 0.0
    _deaf: bool = False
    """The bus was away, and nobody was heard since."""
    _last_tick_s: float = 0.0
    _since: dict[tuple[object, ...], float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def heard(self, beat: NodeHeartbeat) -> None:
        key = node_key(beat.node, beat.role)
        with self._lock:
            before = self._nodes.get(key)
            if before and before.beat.boot_id == beat.boot_id and beat.seq <= before.beat.seq:
                return
            began = before.boot_began if before else None
            if before and before.beat.boot_id != beat.boot_id:
                began = beat.at
            now_s = self.clock.monotonic()
            self._nodes[key] = Heard(beat, now_s, self.caught_up, began)
            if self._deaf:
                self._deaf, self._counted_from_s = False, now_s
        if before is None or _differs(before.beat, beat):
            self.on_change()

    def all_shown(self) -> None:
        """The topic's past was shown: from now on silence means something."""
        self.restart_count()
        self.caught_up = True
        self.on_change()

    def restart_count(self) -> None:
        """Something kept this process from hearing."""
        with self._lock:
            self._counted_from_s = self.clock.monotonic()

    def bus_is_away(self) -> None:
        """What nodes say meanwhile is not heard, and not held against them."""
        self.restart_count()
        with self._lock:
            self._deaf = True

    def tick(self) -> None:
        """Called at every look at what is due: notices when this process itself stood still."""
        now_s = self.clock.monotonic()
        if now_s - self._last_tick_s > GAP_S:
            self.restart_count()
        self._last_tick_s = now_s

    def nodes(self) -> list[Node]:
        """Nodes that are alive as far as anyone knows. A word from the topic's past counts by its own date."""
        now = self.clock.now()
        return [
            Node(heard.beat.node, heard.beat.role, heard.beat.capacity, heard.beat.stopping)
            for heard in self._all()
            if not self._silent(heard) and (heard.live or (now - heard.beat.at).total_seconds() <= self.timeout_s)
        ]

    def is_gone(self, node: str, role: Role) -> bool:
        """Silent for too long, or never heard of since the count began."""
        heard = self._nodes.get(node_key(node, role))
        if heard:
            return self._silent(heard)
        return self.caught_up and self._silent_since(self._counted_from_s)

    def lists_replica(self, node: str, replica_id: str) -> bool:
        heard = self._nodes.get(node_key(node, Role.inference))
        return heard is not None and not self._silent(heard) and replica_id in heard.beat.replicas

    def leftovers(self, active: Iterable[Job]) -> list[tuple[str, RunRef]]:
        """Runs that live nodes still hold although no current attempt is theirs: they are about to stop."""
        current = {(job.id, job.attempt) for job in active}
        return [
            (heard.beat.node, run)
            for heard in self._all()
            if not self._silent(heard)
            for run in heard.beat.runs
            if (run.job_id, run.attempt) not in current
        ]

    def verdict(self, job: Job) -> AttemptLost | StopOverdue | None:
        """What has become of the current attempt, where silence or a heartbeat says so."""
        for place in job.places:
            if why := self._why_lost(job, place.node, place.rank):
                return AttemptLost(job.attempt, why)
        if self._not_taken_up(job) and self._lasts("starting", job, NOT_STARTED_S):
            return AttemptLost(job.attempt, f"nobody took it up within {NOT_STARTED_S:.0f} s")
        stopping = job.status in (JobStatus.pausing, JobStatus.cancelling)
        if stopping and self._lasts("stopping", job, self.stop_grace_s + STOP_OVERDUE_S):
            return StopOverdue(job.attempt)
        return None

    def ring_again(self, job: Job) -> bool:
        """Whether an attempt has waited for its worker long enough to ring once more; the count starts anew."""
        if job.status is not JobStatus.starting or not self._lasts("unrung", job, RING_AGAIN_S):
            return False
        self._since.pop(("unrung", job.id, job.attempt))
        return True

    def forget_all_but(self, active: Iterable[Job]) -> None:
        """Let go of what was counted for attempts that are over."""
        current = {(job.id, job.attempt) for job in active}
        self._since = {key: since for key, since in self._since.items() if key[1:3] in current}

    def _why_lost(self, job: Job, node: str, rank: int) -> str | None:
        if self.is_gone(node, Role.trainer):
            return f"the node {node} was silent for {self.timeout_s:.0f} s"
        heard = self._nodes.get(node_key(node, Role.trainer))
        announced = job.announced.get(rank)
        if heard and heard.beat.stopping and announced is None:
            return f"the worker on {node} is stopping"
        unlisted = ("unlisted", job.id, job.attempt, rank)
        if heard is None or announced is None or not _denies(heard.beat, job, rank, announced):
            self._since.pop(unlisted, None)
            return None
        if heard.beat.stopping or (heard.boot_began and announced < heard.boot_began):
            return f"the worker on {node} was restarted"
        if self.clock.monotonic() - self._since.setdefault(unlisted, self.clock.monotonic()) > UNLISTED_S:
            return f"the worker on {node} no longer has it"
        return None

    def _not_taken_up(self, job: Job) -> bool:
        """It starts, and some node does not even list the run that it should be preparing."""
        listed = {(run.job_id, run.attempt, run.rank) for heard in self._all() for run in heard.beat.runs}
        return job.status is JobStatus.starting and not all(
            (job.id, job.attempt, place.rank) in listed for place in job.places
        )

    def _lasts(self, what: str, job: Job, seconds: float) -> bool:
        """Whether this has been so for longer, by this process's own count."""
        now_s = self.clock.monotonic()
        return now_s - self._since.setdefault((what, job.id, job.attempt), now_s) > seconds

    def _silent(self, heard: Heard) -> bool:
        if not self.caught_up:
            return False
        return self._silent_since(max(heard.at_s, self._counted_from_s))

    def _silent_since(self, since_s: float) -> bool:
        patience_s = self.timeout_s * (DEAF_TIMES if self._deaf else 1)
        return self.clock.monotonic() - since_s > patience_s

    def _all(self) -> list[Heard]:
        with self._lock:
            return list(self._nodes.values())


def _denies(beat: NodeHeartbeat, job: Job, rank: int, announced: datetime) -> bool:
    """The node spoke after the run had started, by the same clock, and did not list it."""
    listed = {(run.job_id, run.attempt, run.rank, run.run_id) for run in beat.runs}
    return beat.at > announced and (job.id, job.attempt, rank, job.runs[rank]) not in listed


def _differs(before: NodeHeartbeat, after: NodeHeartbeat) -> bool:
    """Whether there is something to decide: runs or replicas came or went, or the node itself changed."""
    return any(
        getattr(before, what) != getattr(after, what)
        for what in ("boot_id", "capacity", "runs", "replicas", "stopping")
    )
