"""What is looked at now and then, beside the loop: whether the bus answers, what it shows wrongly, old ids, metrics."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from datetime import timedelta

from sqlalchemy.exc import SQLAlchemyError

from services.scheduler import metrics
from services.scheduler.clock import Clock
from services.scheduler.comparison import Comparison
from services.scheduler.liveness import Liveness
from services.scheduler.outbox import Outbox
from services.scheduler.truth import Truth, active_jobs, count_by_status, purge_old_commands
from shared.bus.port import Bus, BusError
from shared.contracts.jobs import JobStatus
from shared.contracts.nodes import Role
from shared.contracts.topics import DEPLOYMENTS_COMMANDS, JOBS_COMMANDS, JOBS_EVENTS, REGISTRY_EVENTS

log = logging.getLogger("llmos.scheduler.monitor")

PING_S = 1.0
MEASURE_S = 5.0
COMPARE_S = 60.0
COMMANDS_KEPT = timedelta(days=8)
"""A day longer than the bus keeps commands: no id is forgotten that may still come."""
CONSUMED = (JOBS_COMMANDS, JOBS_EVENTS, REGISTRY_EVENTS, DEPLOYMENTS_COMMANDS)


class Monitor:
    """A thread of its own, so that a bus that hangs does not stop the loop."""

    def __init__(
        self,
        truth: Truth,
        outbox: Outbox,
        liveness: Liveness,
        comparison: Comparison,
        bus: Bus,
        group: str,
        clock: Clock,
    ) -> None:
        self._truth = truth
        self._outbox = outbox
        self._liveness = liveness
        self._comparison = comparison
        self._bus = bus
        self._group = group
        self._clock = clock
        self._stopping = threading.Event()
        self._due: dict[str, float] = {}

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        """Until stopped. Raises Deposed."""
        trouble = ""
        while not self._stopping.wait(PING_S):
            try:
                self.look()
                trouble = ""
            except (BusError, SQLAlchemyError) as error:
                if str(error) != trouble:
                    log.warning("%s", error)
                trouble = str(error)

    def look(self) -> None:
        """One look. Raises BusError when the bus is away; what nodes say meanwhile is not heard, and not held against
        them."""
        measures = self._is_due("measure", MEASURE_S)
        try:
            if measures:  # first: how much waits for the bus matters most while that is away
                self.measure()
        finally:
            self._ask_for_the_bus()
        if self._comparison.ready and self._is_due("compare", COMPARE_S):
            self.compare()
        if measures:
            self.measure_bus()

    def _ask_for_the_bus(self) -> None:
        try:
            self._bus.ping()
        except BusError:
            self._liveness.bus_is_away()
            raise

    def compare(self) -> None:
        """Publish again what the bus shows otherwise than the truth, bookmark what it shows whole, forget old ids."""
        seen = self._comparison.look()
        if count := self._comparison.mend(seen):
            log.info("publishes %d states again: the bus showed them otherwise than the truth", count)
            self._outbox.wake()
        self._comparison.bookmark(self._bus, seen)
        with self._truth.writing() as connection:
            purge_old_commands(connection, self._clock.now() - COMMANDS_KEPT)

    def measure(self) -> None:
        """What can be said without the bus."""
        alive = Counter(node.role for node in self._liveness.nodes())
        for role in Role:
            metrics.NODES.labels(role).set(alive[role])
        with self._truth.reading() as connection:
            counts = count_by_status(connection)
            starting = [job for job in active_jobs(connection) if job.status is JobStatus.starting]
        for status in JobStatus:
            metrics.JOBS.labels(status).set(counts.get(status, 0))
        now = self._clock.now()
        waits = ((now - job.attempts[-1].dispatched_at).total_seconds() for job in starting)
        metrics.OLDEST_UNACCEPTED.set(max(waits, default=0.0))
        metrics.OUTBOX_AGE.set(self._outbox.age_s())

    def measure_bus(self) -> None:
        for topic in CONSUMED:
            metrics.LAG.labels(topic.name).set(self._bus.lag(topic, self._group))
            metrics.DLQ.labels(topic.name).set(self._bus.dlq_depth(topic))

    def _is_due(self, what: str, every_s: float) -> bool:
        """True at first, and then once in `every_s`."""
        now_s = self._clock.monotonic()
        if now_s < self._due.get(what, now_s):
            return False
        self._due[what] = now_s + every_s
        return True
