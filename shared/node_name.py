"""A node's name: held by one process of a role, on this machine and among all machines of the bus."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from shared.bus.port import Bus, Record
from shared.contracts.nodes import NodeHeartbeat, Role, node_key
from shared.contracts.topics import NODES_HEARTBEATS

LOOK_S = 0.5
BEATS = 2.5
"""So many heartbeats without a word: whoever had the name is gone."""


class NodeTaken(Exception):
    """Another process of that role and name runs."""


class NodeName:
    """A name, held on this machine until it is closed; the kernel lets go of it with the process."""

    def __init__(self, home: Path, node: str, role: Role) -> None:
        """`home`: the role's folder. Raises NodeTaken."""
        self.node = node
        self.role = role
        self.boot_id = uuid4().hex
        home.mkdir(parents=True, exist_ok=True)
        self._file = (home / f"{node}.lock").open("a+")
        self._file.seek(0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = self._file.read().partition(" ")[0] or "unknown"
            self._file.close()
            raise NodeTaken(
                f"the {role} of the node {node!r} runs here already, process {holder}; "
                "stop it, or set LLMOS_NODE to another name"
            ) from error
        self._boot_before = self._file.read().partition(" ")[2]
        self._file.truncate(0)
        self._file.write(f"{os.getpid()} {self.boot_id}")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def claim(
        self,
        bus: Bus,
        heartbeat_s: float,
        heartbeat_timeout_s: float,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Before the first heartbeat: see that no other machine has the name, or stop. Raises NodeTaken.

        Two that answer to one name would each look like the restart of the other, and every run like a lost one. Waits
        only where somebody had the name a moment ago, who did not say farewell and was not on this machine.
        """
        heard = _Heard(node_key(self.node, self.role))
        following = bus.follow(NODES_HEARTBEATS, heard.on_record, heard.caught_up.set)
        try:
            while not heard.caught_up.wait(LOOK_S):
                if stopping():
                    return
            other = heard.last
            if other is None or other.stopping or other.boot_id == self._boot_before:
                return
            if (datetime.now(UTC) - other.at).total_seconds() > heartbeat_timeout_s:
                return
            heard.again.clear()
            if heard.again.wait(BEATS * heartbeat_s):
                raise NodeTaken(
                    f"the {self.role} of the node {self.node!r} runs already, on another machine; "
                    "set LLMOS_NODE to a name of its own for each machine"
                )
        finally:
            following.close()


class _Heard:
    """What the topic says of one node."""

    def __init__(self, key: str) -> None:
        self._key = key
        self.last: NodeHeartbeat | None = None
        self.caught_up = threading.Event()
        self.again = threading.Event()

    def on_record(self, record: Record) -> None:
        if record.key != self._key:
            return
        if isinstance(record.message, NodeHeartbeat):
            before, self.last = self.last, record.message
            if before and (before.boot_id, before.seq) != (self.last.boot_id, self.last.seq) and not self.last.stopping:
                self.again.set()
