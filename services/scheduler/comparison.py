"""The bus against the truth: what a wiped, restored or misled topic shows wrongly is published again."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import Select, select

from services.scheduler.clock import Clock
from services.scheduler.tables import deployments, jobs
from services.scheduler.truth import Truth, mark_dirty
from shared.bus.bookmarks import Bookmarks
from shared.bus.port import Bus, Record, Subscription
from shared.contracts.deployments import DesiredDeployment
from shared.contracts.jobs import DesiredAttempt, JobState
from shared.contracts.topics import ATTEMPTS_DESIRED, DEPLOYMENTS_DESIRED, JOBS_STATE, Topic

TRUTH: dict[Topic, Select[Any]] = {
    JOBS_STATE: select(jobs.c.id, jobs.c.version),
    # Terminal jobs, and those that were never dispatched, have nothing there.
    ATTEMPTS_DESIRED: select(jobs.c.id, jobs.c.desired_version).where(jobs.c.desired_version > 0),
    DEPLOYMENTS_DESIRED: select(deployments.c.key, deployments.c.version).where(~deployments.c.deleted),
}
"""Which key a compacted topic should show in which version. All three say it in a version that only grows."""
BOOKMARKED = (JOBS_STATE, DEPLOYMENTS_DESIRED)
"""Those that readers keep a copy of: they may delete what a complete table lacks."""


class Compared(NamedTuple):
    """The versions that a topic shows, and those that it should."""

    shown: dict[str, int]
    wanted: dict[str, int]

    @property
    def differing(self) -> set[str]:
        """Keys that the bus shows in another version, not at all, or though they should be gone."""
        return {key for key in self.wanted.keys() | self.shown.keys() if self.wanted.get(key) != self.shown.get(key)}


class Comparison:
    """Follows what the scheduler itself has published, by versions alone, and notes what differs from the truth."""

    def __init__(self, truth: Truth, clock: Clock) -> None:
        self._truth = truth
        self._clock = clock
        self._shown: dict[Topic, dict[str, int]] = {topic: {} for topic in TRUTH}
        self._bookmarks = {topic: Bookmarks(topic) for topic in BOOKMARKED}
        self._caught_up: set[Topic] = set()
        self._lock = threading.Lock()

    def follow(self, bus: Bus) -> list[Subscription]:
        return [bus.follow(topic, self.saw, partial(self._caught_up.add, topic), patience_s=0) for topic in TRUTH]

    def saw(self, record: Record) -> None:
        with self._lock:
            match record.message:
                case JobState(version=version) | DesiredAttempt(version=version) | DesiredDeployment(version=version):
                    self._shown[record.topic][record.key] = version
                case None:
                    self._shown[record.topic].pop(record.key, None)

    @property
    def ready(self) -> bool:
        return len(self._caught_up) == len(TRUTH)

    def look(self) -> dict[Topic, Compared]:
        """Every topic as it is and as it should be."""
        return {topic: self._compared(topic) for topic in TRUTH}

    def mend(self, seen: dict[Topic, Compared]) -> int:
        """Mark what differs for the outbox; what is only on its way is said twice, which does no harm."""
        now = self._clock.now()
        found = {(topic.name, key): now for topic, compared in seen.items() for key in compared.differing}
        if found:
            with self._truth.writing() as connection:
                mark_dirty(connection, found)
        return len(found)

    def bookmark(self, bus: Bus, seen: dict[Topic, Compared]) -> None:
        """Tell readers of each table for how long it has been complete. Raises BusError."""
        for topic, bookmarks in self._bookmarks.items():
            bookmarks.compared(bus, seen[topic].wanted, seen[topic].shown, self._clock.now())

    def _compared(self, topic: Topic) -> Compared:
        with self._lock:
            shown = dict(self._shown[topic])
        with self._truth.reading() as connection:
            return Compared(shown, {row[0]: row[1] for row in connection.execute(TRUTH[topic])})
