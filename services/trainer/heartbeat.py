"""The node's heartbeat: every few seconds, and at once when its list of runs changes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from services.trainer.outbox import Contact
from shared.bus.port import Bus, BusError
from shared.contracts.nodes import Capacity, NodeHeartbeat, Role, RunRef, node_key
from shared.contracts.topics import NODES_HEARTBEATS
from shared.outage import Outage
from shared.version import installed_version

log = logging.getLogger(__name__)

FAREWELL_TIMEOUT_S = 5.0


class Heartbeat:
    """On a thread of its own. Changes that come while one is under way go out together with the next."""

    def __init__(
        self,
        bus: Bus,
        contact: Contact,
        node: str,
        boot_id: str,
        capacity: Capacity,
        runs: Callable[[], list[RunRef]],
        every_s: float,
    ) -> None:
        self._bus = bus
        self._contact = contact
        self._node = node
        self._boot_id = boot_id
        self._capacity = capacity
        self._runs = runs
        self._every_s = every_s
        self._seq = 0
        self._outage = Outage(log, "the heartbeat")
        self._due = threading.Event()
        self._ending = False
        self._farewell = True
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def soon(self) -> None:
        """The list of runs changed."""
        self._due.set()

    def say_farewell(self) -> None:
        """The last word of an orderly stop; waits a little for it to be durable."""
        self._ending = True
        self._due.set()
        self._thread.join(FAREWELL_TIMEOUT_S)

    def fall_silent(self) -> None:
        """As `say_farewell`, without the word: another has the name, for whom it would speak."""
        self._farewell = False
        self.say_farewell()

    def _beat(self) -> None:
        while not self._ending:
            self._send()
            self._due.wait(self._every_s)
            self._due.clear()
        if self._farewell:
            self._send(stopping=True)

    def _send(self, stopping: bool = False) -> None:
        heartbeat = NodeHeartbeat(
            node=self._node,
            role=Role.trainer,
            boot_id=self._boot_id,
            capacity=self._capacity,
            runs=self._runs(),
            version=installed_version(),
            stopping=stopping,
            seq=self._seq,
        )
        self._seq += 1
        try:
            self._bus.publish(NODES_HEARTBEATS, node_key(self._node, Role.trainer), heartbeat).result()
        except BusError as error:
            self._outage.began(error)
        else:
            self._outage.ended()
            self._contact.made()
