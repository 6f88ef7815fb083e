"""The bus against the truth: what a wiped, restored or misled topic shows wrongly is published again."""

from __future__ import annotations

import threading
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Select, select

from services.scheduler.clock import Clock
from services.scheduler.tables import deployments, jobs
from services.scheduler.truth import Truth, mark_dirty
from shared.bus.port import Bus, Record, Subscription
from shared.bus.whole import Whole
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
SAID_WHOLE = (JOBS_STATE, DEPLOYMENTS_DESIRED)
"""Those that readers keep a copy of: they may delete what a whole table lacks."""


class Comparison:
    """Follows what the scheduler itself has published, by versions alone, and notes what differs from the truth."""

    def __init__(self, truth: Truth, clock: Clock) -> None:
        self._truth = truth
        self._clock = clock
        self._shown: dict[Topic, dict[str, int]] = {topic: {} for topic in TRUTH}
        self._whole = {topic: Whole(topic) for topic in SAID_WHOLE}
        self._caught_up: set[Topic] = set()
        self._lock = threading.Lock()

    def follow(self, bus: Bus) -> list[Subscription]:
        return [bus.follow(topic, self.saw, partial(self._caught_up.add, topic), patience_s=0) for topic in TRUTH]

    def saw(self, record: Record) -> None:
        whole = self._whole.get(record.topic)
        if whole and whole.saw(record):
            return
        with self._lock:
            match record.message:
                case JobState(version=version) | DesiredAttempt(version=version) | DesiredDeployment(version=version):
                    self._shown[record.topic][record.key] = version
                case None:
                    self._shown[record.topic].pop(record.key, None)

    @property
    def ready(self) -> bool:
        return len(self._caught_up) == len(TRUTH)

    def differences(self) -> dict[tuple[str, str], datetime]:
        """Keys that the bus shows in another version, not at all, or though they should be gone."""
        now, found = self._clock.now(), {}
        for topic in TRUTH:
            wanted, shown = self._both(topic)
            for key in wanted.keys() | shown.keys():
                if wanted.get(key) != shown.get(key):
                    found[topic.name, key] = now
        return found

    def say_whole(self, bus: Bus) -> None:
        """Tell readers of each table whether it shows all that it should. Raises BusError."""
        for topic, whole in self._whole.items():
            wanted, shown = self._both(topic)
            whole.compared(bus, wanted, shown, self._clock.now())

    def _both(self, topic: Topic) -> tuple[dict[str, int], dict[str, int]]:
        """The versions that there should be, and those that are shown."""
        with self._truth.reading() as connection:
            wanted = {row[0]: row[1] for row in connection.execute(TRUTH[topic])}
        with self._lock:
            return wanted, dict(self._shown[topic])

    def mend(self) -> int:
        """Mark what differs for the outbox; what is only on its way is said twice, which does no harm."""
        if found := self.differences():
            with self._truth.writing() as connection:
                mark_dirty(connection, found)
        return len(found)
