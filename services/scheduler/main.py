"""Composition root: settings in, objects built, threads started and stopped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

import shared.bus
import shared.doorbell
from services.scheduler import metrics
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
from shared.db import migrate, open_database
from shared.doorbell.port import Doorbell
from shared.settings import Settings, SettingsError
from shared.stopping import Stop, until_it_works
from shared.telemetry import setup_telemetry

log = logging.getLogger("llmos.scheduler")

GROUP = "scheduler"
AWAY = (BusError, OperationalError)


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
        for subscription in self._subscriptions:
            subscription.close()

    def _run(self, part: Callable[[], None]) -> None:
        """A thread that fails ends the process: the next one begins from the truth."""
        try:
            part()
        except BaseException as error:
            log.error("%s ended: %s", part.__qualname__, error, exc_info=not isinstance(error, Deposed))
            self._on_failure(error)


def leadership_of(settings: Settings, engine: Engine) -> Leadership:
    """Raises SettingsError where the database has no way to elect a leader yet."""
    if engine.dialect.name != "sqlite" or not engine.url.database:
        raise SettingsError(f"LLMOS_DB_URL: the scheduler needs sqlite:///file (it is {engine.url})")
    return FileLeadership(Path(f"{engine.url.database}.leader"))


def main(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code: 1 when a part failed or another scheduler took over."""
    stop, failures = Stop(), list[BaseException]()
    setup_telemetry(settings, "scheduler")

    def failed(error: BaseException) -> None:
        failures.append(error)
        stop.ask()

    engine = open_database(settings.effective_db_url("scheduler"))
    leadership = leadership_of(settings, engine)
    log.info("stands by until it may lead")
    try:
        if leadership.acquire(stop):
            lead(settings, engine, stop, failed)
    finally:
        leadership.release()
    return 1 if failures else 0


def lead(settings: Settings, engine: Engine, stop: Stop, failed: Callable[[BaseException], None]) -> None:
    """Take over and decide until told to stop. Only who may lead touches the schema."""
    bus = shared.bus.connect(settings.bus_url, f"scheduler-{settings.node}")
    try:
        if not until_it_works("the database", lambda: migrate(engine, "services.scheduler.migrations"), AWAY, stop):
            return
        if not until_it_works("the bus", bus.ping, AWAY, stop):
            return
        doorbell = shared.doorbell.connect(settings.redis_url)
        service = Service(settings, engine, bus, doorbell, take_over(engine), on_failure=failed)
        service.start()
        metrics.LEADS.set(1)
        log.info("leads in epoch %d", service.truth.epoch)
        stop.wait_until_asked()
        log.info("stops")
        service.stop()
        doorbell.close()
    finally:
        bus.close()
