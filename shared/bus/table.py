"""A compacted topic as one follower has been shown it: the same for every adapter of the bus."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from shared.bus.delivery import Pause, RawRecord
from shared.bus.port import IncompatibleBus, Position, Record
from shared.contracts.message import DecodeError, decode
from shared.contracts.topics import Topic

log = logging.getLogger("llmos.bus")

NEVER = Position(0, -1)


class Table:
    """Shows each record once, until it was taken; tells when all was shown; gives up the keys that a wipe has lost.

    An adapter shows what there is and calls `all_shown`, then shows changes as they come. Where it missed some it calls
    `begin_anew`, and does the same again. Raises IncompatibleBus for a topic that is not compacted.
    """

    def __init__(
        self,
        topic: Topic,
        on: Callable[[Record], None],
        caught_up: Callable[[], None] | None,
        patience_s: float,
        stopping: threading.Event,
    ) -> None:
        if not topic.compacted:
            raise IncompatibleBus(f"topic {topic.name} is not compacted: subscribe to it with a group")
        self._topic = topic
        self._on = on
        self._caught_up = caught_up
        self._patience_s = patience_s
        self._stopping = stopping
        self._shown: dict[str, Position] = {}
        """Each key's last record. NEVER: not shown since the table is read anew."""
        self._give_up_at: float | None = None

    def __contains__(self, key: str) -> bool:
        """Whether the follower knows the key."""
        return key in self._shown

    def begin_anew(self) -> None:
        """All that there is comes again; in a log that was made anew, at positions that may begin below."""
        self._shown = dict.fromkeys(self._shown, NEVER)

    def show(self, raw: RawRecord) -> None:
        """Returns when it was taken, when it does not decode (logged), or when the follower stops.

        Positions of a key only grow: what was shown already does not come again as an old change.
        """
        shown = self._shown.get(raw.key)
        if shown is not None and raw.position <= shown:
            return
        self._show(raw)
        if raw.raw is None:
            self._shown.pop(raw.key, None)
        else:
            self._shown[raw.key] = raw.position

    def all_shown(self, end: Position, *, wiped: bool = False) -> None:
        """The table was read as far as `end`. What it no longer has is gone; after a wipe it may come back in time."""
        patience_s = self._patience_s if wiped else 0.0
        self._give_up_at = max(self._give_up_at or 0.0, time.monotonic() + patience_s)
        self.give_up_lost_keys(end)
        if self._caught_up is not None and not self._stopping.is_set():
            self._insist("caught_up", self._caught_up)
            self._caught_up = None

    def give_up_lost_keys(self, end: Position) -> None:
        """Show the keys that were not seen again as tombstones at `end`, once it is time."""
        if self._give_up_at is None or time.monotonic() < self._give_up_at:
            return
        self._give_up_at = None
        for key in [key for key, shown in self._shown.items() if shown == NEVER]:
            self.show(RawRecord(key, end, None))

    def _show(self, raw: RawRecord) -> None:
        try:
            message = None if raw.raw is None else decode(raw.raw)
        except DecodeError as error:
            log.error("%s: key %s at %s is skipped: %s", self._topic.name, raw.key, raw.position, error)
            return
        record = Record(self._topic, raw.key, raw.position, message)
        self._insist(f"key {raw.key}", lambda: self._on(record))

    def _insist(self, what: str, deed: Callable[[], None]) -> None:
        """Do it until it does not fail, or the follower stops."""
        pause = Pause(self._stopping)
        while not self._stopping.is_set():
            try:
                deed()
                return
            except Exception:
                log.exception("%s: %s could not be taken, and is shown again", self._topic.name, what)
                pause.wait()
