"""Composition root: settings in, objects built, threads started and stopped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Engine

import shared.bus
import shared.doorbell
from services.scheduler import metrics
from services.scheduler.advisory import AdvisoryLeadership
from services.scheduler.clock import Clock, SystemClock
from services.scheduler.comparison import Comparison
from services.scheduler.deployments import Artifacts, GivenUp
from services.scheduler.handlers import Handlers
from services.scheduler.leadership import FileLeadership, Leadership
from services.scheduler.ledger import Ledger
from services.scheduler.liveness import Liveness
from services.scheduler.monitor import Monitor
from services.scheduler.outbox import Outbox
from services.scheduler.rules import Limits
from services.scheduler.scheduler import Scheduler
from services.scheduler.truth import Deposed, Truth, take_over
from shared.bus.port import Bus, BusError, Subscription
from shared.contracts.topics import (
    DEPLOYMENTS_COMMANDS,
    DEPLOYMENTS_STATUS,
    JOBS_COMMANDS,
    JOBS_EVENTS,
    NODES_HEARTBEATS,
    REGISTRY_EVENTS,
    REGISTRY_STATE,
)
from shared.db import AWAY, migrate, open_database, ping, why
from shared.doorbell.port import Doorbell
from shared.operations import serve_operations
from shared.settings import Settings, SettingsError
from shared.stopping import Stop, all_at_once
from shared.telemetry import setup_telemetry

log = logging.getLogger("llmos.scheduler")

GROUP = "scheduler"
LOOK_S = 0.5
"""Pause between two looks at whether this process may still lead."""
RETRY_S = 1.0
STOP_S = 20.0
"""What hangs for longer than that, when leadership is lost, ends with the process."""


class Service:
    """A scheduler that leads: everything wired, running between `start` and `stop`."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        bus: Bus,
        doorbell: Doorbell,
        epoch: int,
        clock: Clock | None = None,
        on_failure: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        clock = clock or SystemClock()
        limits = Limits(settings.max_lost, settings.max_crashes, settings.backoff_s)
        self.bus = bus
        self.truth = Truth(engine, epoch)
        self.outbox = Outbox(self.truth, bus, doorbell, clock)
        self.ledger = Ledger(self.truth, clock, limits, on_written=self.outbox.wake)
        self.artifacts = Artifacts()
        self.given_up = GivenUp()
        self.liveness = Liveness(clock, settings.heartbeat_timeout_s, settings.stop_grace_s)
        self.scheduler = Scheduler(self.ledger, self.liveness, self.artifacts, self.given_up, settings)
        self.liveness.on_change = self.scheduler.wake
        self.comparison = Comparison(self.truth, clock)
        self.monitor = Monitor(self.truth, self.outbox, self.liveness, self.comparison, bus, GROUP, clock)
        self.handlers = Handlers(self.ledger, self.liveness, self.artifacts, self.given_up, self.scheduler.wake)
        self._on_failure = on_failure
        self._threads: list[threading.Thread] = []
        self._subscriptions: list[Subscription] = []

    def start(self) -> None:
        on, bus = self.handlers, self.bus
        self._subscriptions = [
            bus.follow(NODES_HEARTBEATS, on.heartbeat, self.liveness.all_shown),
            bus.follow(REGISTRY_STATE, on.registry_state, on.registry_caught_up),
            bus.follow(DEPLOYMENTS_STATUS, on.replica_status),
            *self.comparison.follow(bus),
            bus.subscribe(JOBS_COMMANDS, GROUP, on.job_commands, on_broken=on.broken_job_command),
            bus.subscribe(JOBS_EVENTS, GROUP, on.job_events),
            bus.subscribe(REGISTRY_EVENTS, GROUP, on.registry_events),
            bus.subscribe(DEPLOYMENTS_COMMANDS, GROUP, on.deployment_commands),
        ]
        for part in (self.outbox.run, self.scheduler.run, self.monitor.run):
            thread = threading.Thread(target=self._run, args=(part,), name=part.__qualname__, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """No new decisions; what is in the outbox stays for the next leader."""
        for part in (self.scheduler, self.outbox, self.monitor):
            part.stop()
        for thread in self._threads:
            thread.join()
        all_at_once(subscription.close for subscription in self._subscriptions)

    def _run(self, part: Callable[[], None]) -> None:
        """A thread that fails ends the process: the next one begins from the truth."""
        try:
            part()
        except BaseException as error:
            log.error("%s ended: %s", part.__qualname__, error, exc_info=not isinstance(error, Deposed))
            self._on_failure(error)


def leadership_of(settings: Settings, engine: Engine) -> Leadership:
    """Raises SettingsError where the database has no way to elect a leader."""
    if engine.dialect.name == "postgresql":
        return AdvisoryLeadership(engine)
    if not engine.url.database:
        raise SettingsError(f"LLMOS_DB_URL: the scheduler needs a database that stays (it is {engine.url})")
    return FileLeadership(Path(f"{engine.url.database}.leader"))


def main(settings: Settings) -> int:
    """Lead or stand by until SIGTERM or SIGINT. Returns the exit code: 1 when a part failed."""
    stop, failures = Stop(), list[BaseException]()
    setup_telemetry(settings, "scheduler")
    engine = open_database(settings.effective_db_url("scheduler"))
    leadership = leadership_of(settings, engine)
    bus = shared.bus.connect(settings.bus_url, f"scheduler-{settings.node}")
    doorbell = shared.doorbell.connect(settings.redis_url)
    serve_operations(settings.metrics_port, {"database": lambda: ping(engine), "bus": bus.ping})
    try:
        if not shared.bus.need(bus, settings).wait(stop.wait):
            return 0
        while not stop.asked and not failures:
            log.info("stands by until it may lead")
            if leadership.acquire(stop):
                failures += lead(settings, engine, bus, doorbell, leadership, stop)
                leadership.release()
    finally:
        leadership.release()
        doorbell.close()
        _within(STOP_S, bus.close)
    return 1 if failures else 0


def lead(
    settings: Settings, engine: Engine, bus: Bus, doorbell: Doorbell, leadership: Leadership, stop: Stop
) -> list[BaseException]:
    """Take over and decide until told to stop or deposed. Returns what failed, if anything did."""
    ended: list[BaseException] = []
    try:
        bus.ping()
        migrate(engine, "services.scheduler.migrations")
        service = Service(settings, engine, bus, doorbell, take_over(engine), on_failure=ended.append)
    except (*AWAY, BusError) as error:
        log.warning("cannot take over now: %s", why(error))
        stop.wait(RETRY_S)
        return []
    service.start()
    metrics.LEADS.set(1)
    log.info("leads in epoch %d", service.truth.epoch)
    while not ended and leadership.held() and not stop.wait(LOOK_S):
        pass
    metrics.LEADS.set(0)
    log.info("stops" if stop.asked else "leads no longer")
    if not _within(STOP_S, service.stop):
        ended.append(TimeoutError(f"a part did not stop in {STOP_S:g} s"))
    metrics.forget()  # last: nobody measures any more
    return [error for error in ended if not isinstance(error, Deposed)]


def _within(timeout_s: float, work: Callable[[], None]) -> bool:
    """Whether the work was done by then."""
    thread = threading.Thread(target=work, name="stop", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return not thread.is_alive()
