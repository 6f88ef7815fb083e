"""What a run has to say, in order, until it is durable: the bus may be away for long, the run goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from shared.backoff import Backoff
from shared.bus.port import Bus, BusError
from shared.contracts.jobs import LogLines, Progress, RunMessage
from shared.contracts.topics import JOBS_EVENTS, JOBS_LOGS
from shared.outage import Outage

log = logging.getLogger(__name__)

MAX_WAITING_LOGS = 400
"""Log batches and progress reports that wait; past that the oldest go. Events always wait."""
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0

OnDurable = Callable[[], None]


class Contact:
    """When the bus was last heard of, on this process's monotonic clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_s = clock()

    def made(self) -> None:
        self._last_s = self._clock()

    def silence_s(self) -> float:
        return self._clock() - self._last_s


class Outbox:
    """One run's, with a thread of its own. A message is sent only when the one before is durable."""

    def __init__(self, bus: Bus, contact: Contact, name: str) -> None:
        self._bus = bus
        self._contact = contact
        self._changed = threading.Condition()
        self._waiting: deque[tuple[RunMessage, OnDurable | None]] = deque()
        self._lines_dropped = 0
        self._closing = False
        self._abandoned = threading.Event()
        self._outage = Outage(log, f"the outbox of run {name}")
        self._thread = threading.Thread(target=self._deliver, name=f"outbox-{name}", daemon=True)
        self._thread.start()

    def put(self, message: RunMessage, on_durable: OnDurable | None = None) -> None:
        """Never blocks. `on_durable` is called on the outbox's thread."""
        with self._changed:
            self._waiting.append((message, on_durable))
            self._make_room()
            self._changed.notify()

    def close(self) -> None:
        """Send what waits, however long it takes, then end the thread. Returns at once."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def abandon(self) -> None:
        """Give up what is not durable by now: the process ends."""
        self._abandoned.set()
        self.close()

    def _deliver(self) -> None:
        while (item := self._next()) is not None:
            message, on_durable = item
            if self._send(message) and on_durable:
                on_durable()

    def _next(self) -> tuple[RunMessage, OnDurable | None] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting:
                return None
            message, on_durable = self._waiting.popleft()
            if isinstance(message, LogLines) and self._lines_dropped:
                confession = f"… {self._lines_dropped} lines were dropped while the bus was away"
                message = message.changed(lines=[confession, *message.lines])
                self._lines_dropped = 0
            return message, on_durable

    def _send(self, message: RunMessage) -> bool:
        """Tries for ever; False when abandoned."""
        topic = JOBS_LOGS if isinstance(message, Progress | LogLines) else JOBS_EVENTS
        backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while not self._abandoned.is_set():
            try:
                self._bus.publish(topic, message.job_id, message).result()
            except BusError as error:
                self._outage.began(error)
                self._abandoned.wait(backoff.next_s())
            else:
                self._outage.ended()
                self._contact.made()
                return True
        return False

    def _make_room(self) -> None:
        """Drop the oldest log lines, and where there are none the oldest progress."""
        logs = [item for item in self._waiting if isinstance(item[0], Progress | LogLines)]
        if len(logs) <= MAX_WAITING_LOGS:
            return
        oldest = next((item for item in logs if isinstance(item[0], LogLines)), logs[0])
        if isinstance(oldest[0], LogLines):
            self._lines_dropped += len(oldest[0].lines)
        self._waiting.remove(oldest)
