"""The node agent: converges this node's replicas to `deployments.desired`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from services.inference.domain import Seat, seats
from services.inference.keeper import Keeper, Node
from services.inference.reports import StatusReports
from services.inference.standing import Standing
from shared.contracts.deployments import DesiredDeployment

log = structlog.get_logger(__name__)

AGAIN_S = 1.0
"""Before a replica whose keeper broke gets a new one."""

OnChange = Callable[[], None]


class Agent:
    """Keeps one Keeper for every replica placed here. All its methods run on the event loop."""

    def __init__(self, node: Node, reports: StatusReports, on_change: OnChange, left: list[str]) -> None:
        self._node = node
        self._name = node.settings.node
        self._reports = reports
        self._on_change = on_change
        self._left = set(left)
        """Replicas that an earlier agent kept and this one has not taken over."""
        self._desired: dict[str, DesiredDeployment] = {}
        self._caught_up = False
        self._stopping = False
        self._keepers: dict[str, Keeper] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._burials: set[asyncio.Task[None]] = set()

    @property
    def replicas(self) -> list[str]:
        """Those that are kept, in whatever state."""
        return sorted(self._keepers)

    def desired(self, key: str, deployment: DesiredDeployment | None) -> None:
        """What is wanted of one deployment, None for nothing more. An older version than known is ignored."""
        known = self._desired.get(key)
        if deployment is None:
            self._desired.pop(key, None)
        elif known is None or deployment.version >= known.version:
            self._desired[key] = deployment
        self._converge()

    def caught_up(self) -> None:
        """All that is wanted is known: only now can anything be unwanted."""
        self._caught_up = True
        self._converge()

    async def stop(self) -> None:
        """Drain and end every replica; their deployments still want them, so no tombstones."""
        self._stopping = True
        for keeper in self._keepers.values():
            keeper.retire()
        if self._tasks:
            log.info("waiting_for_replicas", replicas=self.replicas)
            await asyncio.wait(list(self._tasks.values()))

    def _converge(self) -> None:
        if not self._caught_up or self._stopping:
            return
        wanted = seats(self._desired.values(), self._name)
        for replica_id in self._keepers.keys() - wanted.keys():
            self._keepers[replica_id].retire()
        for replica_id, seat in wanted.items():
            if keeper := self._keepers.get(replica_id):
                keeper.change(seat)
            else:
                self._keep(seat)
        for replica_id in self._left - wanted.keys():
            self._bury(replica_id)
        self._left.clear()

    def _keep(self, seat: Seat) -> None:
        replica_id = seat.replica_id
        self._node.leftovers.note(replica_id)
        keeper = Keeper(seat, self._node, Standing(seat, self._name, self._reports.say))
        self._keepers[replica_id] = keeper
        self._tasks[replica_id] = asyncio.create_task(keeper.run(), name=f"keeper {replica_id}")
        self._tasks[replica_id].add_done_callback(lambda task: self._kept(replica_id, task))
        self._on_change()

    def _kept(self, replica_id: str, task: asyncio.Task[None]) -> None:
        """A keeper has ended: it was retired, or it is broken itself, and then its replica gets a new one."""
        del self._keepers[replica_id], self._tasks[replica_id]
        error = None if task.cancelled() else task.exception()
        if error:
            log.error("keeper_failed", replica=replica_id, exc_info=error)
        if not self._stopping:
            if replica_id not in seats(self._desired.values(), self._name):
                self._bury(replica_id)
            asyncio.get_running_loop().call_later(AGAIN_S if error else 0, self._converge)
        self._on_change()

    def _bury(self, replica_id: str) -> None:
        """The replica is gone for good: its status goes, then its record. It may live on, on another node."""
        places = [place for desired in self._desired.values() for place in desired.replicas]
        if any(place.replica_id == replica_id for place in places):
            self._node.leftovers.forget(replica_id)
            return
        self._reports.say(replica_id, None)
        burial = asyncio.create_task(self._forget_when_said(replica_id))
        self._burials.add(burial)
        burial.add_done_callback(self._burials.discard)

    async def _forget_when_said(self, replica_id: str) -> None:
        await self._reports.said(replica_id)
        if replica_id not in self._keepers:
            self._node.leftovers.forget(replica_id)
