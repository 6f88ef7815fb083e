"""What a gateway knows of each replica: its last status, its load, when it was last heard of, what we ask of it now."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shared.contracts.deployments import ReplicaState, ReplicaStatus

Draw = Callable[[Sequence["Replica"], int], list["Replica"]]
"""Draws so many different ones: `random.sample`."""


class Replica:
    """One replica as this gateway sees it. Times are of the event loop's monotonic clock, in seconds."""

    def __init__(self, status: ReplicaStatus, now: float) -> None:
        self.id = status.replica_id
        self.status = status
        self.adapters = frozenset(status.adapters)
        self.heard_at = now
        self.in_flight = 0
        self.others = status.load.running + status.load.waiting
        """Requests that it holds beyond ours, by its last report."""

    @property
    def ready(self) -> bool:
        return self.status.state is ReplicaState.ready

    @property
    def holds_requests(self) -> bool:
        return self.status.state in (ReplicaState.ready, ReplicaState.draining)

    @property
    def load(self) -> int:
        return self.others + self.in_flight

    def serves(self, ref: str) -> bool:
        """Whether it answers for this version now, as its base or as an adapter."""
        return self.ready and (self.status.model == ref or ref in self.adapters)

    def gone(self) -> None:
        """Nothing is behind it any more."""
        self.status = self.status.changed(state=ReplicaState.stopped)

    def report(self, holds: int, now: float) -> None:
        """It lives, and says how many requests it holds."""
        self.others = max(0, holds - self.in_flight)
        self.heard_at = now

    def update(self, status: ReplicaStatus, now: float) -> None:
        """Take a status, unless it is an old one of the same process, or the one that is known."""
        known = self.status
        if status.id == known.id or (status.boot_id == known.boot_id and status.seq < known.seq):
            return
        self.status = status
        self.adapters = frozenset(status.adapters)
        self.report(status.load.running + status.load.waiting, now)


def choose(replicas: Sequence[Replica], now: float, silence_s: float, draw: Draw) -> Replica | None:
    """The less loaded of two drawn at random. One that fell silent only where there is no other."""
    heard = [replica for replica in replicas if now - replica.heard_at < silence_s] or replicas
    if len(heard) < 2:
        return heard[0] if heard else None
    one, two = draw(heard, 2)
    return one if one.load <= two.load else two
