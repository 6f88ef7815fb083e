"""The node's heartbeat: every few seconds, and at once when its list of replicas changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from shared.bus.port import Bus, BusError
from shared.contracts.nodes import Capacity, NodeHeartbeat, node_key
from shared.contracts.topics import NODES_HEARTBEATS
from shared.node_name import NodeName
from shared.outage import Outage
from shared.version import installed_version

log = logging.getLogger(__name__)

FAREWELL_TIMEOUT_S = 5.0


class Heartbeat:
    """Says what this node has and which replicas it keeps. Changes that come together go out together."""

    def __init__(
        self, bus: Bus, name: NodeName, capacity: Capacity, replicas: Callable[[], list[str]], every_s: float
    ) -> None:
        self._bus = bus
        self._name = name
        self._capacity = capacity
        self._replicas = replicas
        self._every_s = every_s
        self._seq = 0
        self._outage = Outage(log, "the heartbeat")
        self._due = asyncio.Event()

    def soon(self) -> None:
        """The list of replicas changed."""
        self._due.set()

    async def run(self) -> None:
        """Beat until cancelled. While the bus is away a beat waits for its turn; none is said twice."""
        while True:
            self._due.clear()
            await self._send()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), self._every_s)

    async def say_farewell(self) -> None:
        """The last word of an orderly stop; waits a little for it to be durable."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._send(stopping=True), FAREWELL_TIMEOUT_S)

    async def _send(self, *, stopping: bool = False) -> None:
        heartbeat = NodeHeartbeat(
            node=self._name.node,
            role=self._name.role,
            boot_id=self._name.boot_id,
            capacity=self._capacity,
            replicas=self._replicas(),
            version=installed_version(),
            stopping=stopping,
            seq=self._seq,
        )
        self._seq += 1
        key = node_key(self._name.node, self._name.role)
        try:
            await asyncio.wrap_future(self._bus.publish(NODES_HEARTBEATS, key, heartbeat))
        except BusError as error:
            self._outage.began(error)
        else:
            self._outage.ended()
