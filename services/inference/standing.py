"""What the agent says of one replica: the last status, with what changed since."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

from services.inference.control import Report
from services.inference.domain import Seat
from shared.contracts.deployments import Load, ReplicaState, ReplicaStatus

TROUBLED = (ReplicaState.pulling, ReplicaState.loading, ReplicaState.ready)
Say = Callable[[str, ReplicaStatus | None], None]


class Standing:
    """Builds the replica's statuses and hands them on. A new state forgets what belonged to the old one."""

    def __init__(self, seat: Seat, node: str, say: Say) -> None:
        self.seat = seat
        self.restarts = 0
        self.trouble = ""
        """What its last life ended of; said until it has been well for long, unless there is something newer to say."""
        self._node = node
        self._say = say
        self._boot_id = ""
        self._seq = 0
        self._state = ReplicaState.pulling
        self._facts: dict[str, Any] = {}

    @property
    def percent(self) -> float | None:
        percent: float | None = self._facts.get("percent")
        return percent

    def begin_life(self) -> None:
        """A process is about to be started: what was said before was said of another."""
        self._boot_id, self._seq = uuid4().hex, 0

    def say(self, state: ReplicaState, **facts: Any) -> None:
        """The replica is in this state now. `facts` are fields of ReplicaStatus."""
        if (state, facts) == (self._state, self._facts) and self._seq:
            return
        self._state, self._facts = state, facts
        self._publish()

    def ready(self, report: Report, failed_to_pull: dict[str, str]) -> None:
        """Said at every report, so that its load is never old."""
        self._state = ReplicaState.ready
        self._facts = {
            "adapters": sorted(report.adapters),
            "failed_adapters": {**report.failed_adapters, **failed_to_pull},
            "load": Load(running=report.running, waiting=report.waiting),
            "max_model_len": report.max_model_len,
        }
        self._publish()

    def loaded(self, percent: float) -> None:
        """The engine has read so much of the weights; less than was said before is not said."""
        if self._state is ReplicaState.loading and percent > (self.percent or 0):
            self.say(ReplicaState.loading, percent=percent)

    def adapters_failed(self, failed: dict[str, str]) -> None:
        """These could not be pulled; said at once of a ready replica, else with its first report."""
        if self._state is ReplicaState.ready:
            self._facts = {**self._facts, "failed_adapters": {**self._facts["failed_adapters"], **failed}}
            self._publish()

    def _publish(self) -> None:
        self._seq += 1
        facts = {"reason": self.trouble, **self._facts} if self._state in TROUBLED else self._facts
        status = ReplicaStatus(
            tenant=self.seat.tenant,
            replica_id=self.seat.replica_id,
            deployment=self.seat.deployment,
            node=self._node,
            state=self._state,
            model=self.seat.spec.model.ref,
            restarts=self.restarts,
            boot_id=self._boot_id,
            seq=self._seq,
            deployment_version=self.seat.version,
            **facts,
        )
        self._say(self.seat.replica_id, status)
