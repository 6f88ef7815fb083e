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

from shared.bus.port import Bus, Record, Subscription
from shared.contracts.nodes import NodeHeartbeat, Role, node_key
from shared.contracts.topics import NODES_HEARTBEATS

LOOK_S = 0.5
BEATS = 2.5
"""So many heartbeats without a word: whoever had the name is gone."""


class NodeTaken(Exception):
    """Another process of that role and name runs."""


def lock_of(home: Path, node: str) -> Path:
    """The file that whoever has the name holds locked."""
    return home / f"{node}.lock"


class NodeName:
    """A name, held on this machine until it is closed; the kernel lets go of it with the process."""

    def __init__(self, home: Path, node: str, role: Role) -> None:
        """`home`: the role's folder. Raises NodeTaken."""
        self.node = node
        self.role = role
        self.boot_id = uuid4().hex
        home.mkdir(parents=True, exist_ok=True)
        self._file = lock_of(home, node).open("a+")
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
        self._closing = threading.Event()
        self._guard: threading.Thread | None = None
        self._boot_before = self._file.read().partition(" ")[2]
        self._file.truncate(0)
        self._file.write(f"{os.getpid()} {self.boot_id}")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._closing.set()
        if self._guard is not None:
            self._guard.join()
        self._file.close()

    def claim(
        self,
        bus: Bus,
        heartbeat_s: float,
        heartbeat_timeout_s: float,
        stopping: Callable[[], bool] = lambda: False,
        on_taken: Callable[[NodeTaken], None] = lambda error: None,
    ) -> None:
        """Before the first heartbeat: see that no other machine has the name, or stop. Raises NodeTaken.

        Two that answer to one name would each look like the restart of the other, and every run like a lost one. Waits
        only where somebody had the name a moment ago, who did not say farewell and was not on this machine. Two that
        start at once, or one that starts while the other is cut off, are only seen once both beat: of these the later
        one is told by `on_taken`, on another thread, within `heartbeat_timeout_s` of its first heartbeat.
        """
        heard = _Heard(self, self._boot_before, on_taken)
        following = bus.follow(NODES_HEARTBEATS, heard.on_record, heard.caught_up.set)
        try:
            while not heard.caught_up.wait(LOOK_S):
                if stopping():
                    following.close()
                    return
            if self._was_there(heard.last, heartbeat_timeout_s):
                heard.again.clear()
                if heard.again.wait(BEATS * heartbeat_s):
                    raise taken(self)
        except BaseException:
            following.close()
            raise
        self._guard = threading.Thread(
            target=self._watch, args=(following, heard, heartbeat_timeout_s), name="node name", daemon=True
        )
        self._guard.start()

    def _was_there(self, other: NodeHeartbeat | None, heartbeat_timeout_s: float) -> bool:
        """Whether somebody else had the name a moment ago."""
        if other is None or other.stopping or other.boot_id == self._boot_before:
            return False
        return (datetime.now(UTC) - other.at).total_seconds() <= heartbeat_timeout_s

    def _watch(self, following: Subscription, heard: _Heard, timeout_s: float) -> None:
        while not (heard.mine.wait(LOOK_S) or self._closing.is_set()):
            pass
        self._closing.wait(timeout_s)
        following.close()


def taken(name: NodeName) -> NodeTaken:
    return NodeTaken(
        f"the {name.role} of the node {name.node!r} runs already, on another machine; "
        "set LLMOS_NODE to a name of its own for each machine"
    )


class _Heard:
    """What the topic says of one node. Whoever beat there before our own first heartbeat is an elder."""

    def __init__(self, name: NodeName, boot_before: str, on_taken: Callable[[NodeTaken], None]) -> None:
        self._name = name
        self._key = node_key(name.node, name.role)
        self._on_taken = on_taken
        self._ours = {name.boot_id, boot_before}
        self._elders: set[str] = set()
        self.last: NodeHeartbeat | None = None
        self.caught_up = threading.Event()
        self.again = threading.Event()
        self.mine = threading.Event()

    def on_record(self, record: Record) -> None:
        if record.key != self._key or not isinstance(record.message, NodeHeartbeat):
            return
        before, self.last = self.last, record.message
        if before and (before.boot_id, before.seq) != (self.last.boot_id, self.last.seq) and not self.last.stopping:
            self.again.set()
        self._look_for_elders(record.message)

    def _look_for_elders(self, beat: NodeHeartbeat) -> None:
        if beat.boot_id == self._name.boot_id:
            self.mine.set()
        elif beat.boot_id in self._ours or beat.stopping:
            return
        elif not self.mine.is_set():
            self._elders.add(beat.boot_id)
        elif beat.boot_id in self._elders:
            self._on_taken(taken(self._name))
