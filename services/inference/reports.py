"""The agent's word on the bus: the latest status of every replica, again until the bus has taken it."""

from __future__ import annotations

import asyncio
import logging

from shared.bus.port import Bus, BusError, Record
from shared.contracts.deployments import ReplicaStatus
from shared.contracts.topics import DEPLOYMENTS_STATUS
from shared.outage import Outage

log = logging.getLogger(__name__)

RETRY_S = 1.0


async def earlier_replicas(bus: Bus, node: str, stop: asyncio.Event) -> list[str]:
    """Replicas of this node that the bus still shows: an earlier agent said so, whose disk may be gone since.

    As many as are known by then when asked to stop.
    """
    shown: set[str] = set()
    loop, caught_up = asyncio.get_running_loop(), asyncio.Event()

    def on_status(record: Record) -> None:
        if isinstance(record.message, ReplicaStatus) and record.message.node == node:
            shown.add(record.key)
        else:
            shown.discard(record.key)

    def on_caught_up() -> None:
        loop.call_soon_threadsafe(caught_up.set)

    following = bus.follow(DEPLOYMENTS_STATUS, on_status, on_caught_up)
    waiting = {asyncio.create_task(event.wait()) for event in (caught_up, stop)}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    await asyncio.to_thread(following.close)
    return sorted(shown)


class StatusReports:
    """Publishes statuses in order per replica. What is overtaken while the bus is away is not sent at all."""

    def __init__(self, bus: Bus, retry_s: float = RETRY_S) -> None:
        self._bus = bus
        self._retry_s = retry_s
        self._outage = Outage(log, "the status of replicas")
        self._latest: dict[str, ReplicaStatus | None] = {}
        self._sending: dict[str, asyncio.Task[None]] = {}

    def say(self, replica_id: str, status: ReplicaStatus | None) -> None:
        """This is the replica's status now; None is its tombstone. Never blocks."""
        self._latest[replica_id] = status
        if replica_id not in self._sending:
            self._sending[replica_id] = asyncio.create_task(self._send(replica_id))

    async def said(self, replica_id: str) -> None:
        """Returns when all that was said of the replica is durable."""
        if sending := self._sending.get(replica_id):
            await asyncio.shield(sending)

    async def close(self, timeout_s: float) -> None:
        """Say what is still to be said, for at most so long."""
        if tasks := list(self._sending.values()):
            _, late = await asyncio.wait(tasks, timeout=timeout_s)
            for task in late:
                task.cancel()

    async def _send(self, replica_id: str) -> None:
        try:
            while replica_id in self._latest:
                status = self._latest.pop(replica_id)
                if not await self._published(replica_id, status):
                    self._latest.setdefault(replica_id, status)  # unless there is newer news by now
                    await asyncio.sleep(self._retry_s)
        finally:
            del self._sending[replica_id]

    async def _published(self, replica_id: str, status: ReplicaStatus | None) -> bool:
        try:
            await asyncio.wrap_future(self._bus.publish(DEPLOYMENTS_STATUS, replica_id, status))
        except BusError as error:
            self._outage.began(error)
            return False
        self._outage.ended()
        return True
