"""Composition root: settings in, objects built, threads started and stopped."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import structlog
from sqlalchemy import Engine

import shared.bus
import shared.store
from services.registry import metrics
from services.registry.answers import forget_old_answers
from services.registry.comparison import Comparison
from services.registry.handlers import Handlers
from services.registry.inbox import Inbox
from services.registry.outbox import Outbox
from shared.bus.port import Bus, BusError
from shared.contracts.topics import REGISTRY_COMMANDS
from shared.db import AWAY as DATABASE_AWAY
from shared.db import need as need_database
from shared.db import open_database, ping, why
from shared.operations import serve_operations
from shared.settings import Settings
from shared.stopping import Stop
from shared.store.port import ObjectStore, StoreError
from shared.telemetry import setup_telemetry

log = structlog.get_logger("registry")

GROUP = "registry"
AWAY = (*DATABASE_AWAY, BusError, StoreError)

Part = Comparison | Inbox | Outbox


class Service:
    """A registry, everything wired, running between `start` and `stop`."""

    def __init__(
        self,
        engine: Engine,
        store: ObjectStore,
        bus: Bus,
        on_failure: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._engine = engine
        self._bus = bus
        self.outbox = Outbox(engine, bus)
        self.comparison = Comparison(engine, bus, self.outbox.wake)
        self.handlers = Handlers(engine, store, self.outbox.wake)
        self.inbox = Inbox(engine, self.handlers.handle, self.outbox.wake)
        self._on_failure = on_failure
        self._threads: dict[Part, threading.Thread] = {}

    def start(self) -> None:
        self._forget_old_answers()
        self._watch()
        for part in (self.comparison, self.outbox, self.inbox):
            thread = threading.Thread(target=self._run, args=(part.run,), name=type(part).__name__, daemon=True)
            thread.start()
            self._threads[part] = thread
        self._bus.subscribe(REGISTRY_COMMANDS, GROUP, self.inbox.commands, on_broken=self.handlers.broken)

    def stop(self) -> None:
        """After the commands at work; what is in the inbox and the outbox stays for the next start."""
        self._end(self.comparison)
        self._end(self.inbox)
        self._bus.close()
        self._end(self.outbox)

    def _end(self, part: Part) -> None:
        part.stop()
        if part in self._threads:
            self._threads[part].join()

    def _run(self, part: Callable[[], None]) -> None:
        """A thread that fails ends the process: the next one begins from the tables."""
        try:
            part()
        except BaseException as error:
            log.exception("part_ended", part=part.__qualname__)
            self._on_failure(error)

    def _forget_old_answers(self) -> None:
        try:
            with self._engine.begin() as connection:
                forget_old_answers(connection)
        except DATABASE_AWAY as error:
            log.warning("old_answers_are_kept", error=why(error))

    def _watch(self) -> None:
        topic = REGISTRY_COMMANDS
        metrics.WAITING.set_function(_if_there(self.inbox.waiting))
        metrics.OUTBOX_AGE.set_function(_if_there(self.outbox.age_s))
        metrics.LAG.labels(topic.name).set_function(_if_there(lambda: self._bus.lag(topic, GROUP)))
        metrics.DLQ.labels(topic.name).set_function(_if_there(lambda: self._bus.dlq_depth(topic)))


def _if_there(look: Callable[[], float]) -> Callable[[], float]:
    """The number, or none while what knows it is away: the other numbers are still told."""

    def number() -> float:
        try:
            return look()
        except AWAY:
            return math.nan

    return number


def main(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code: 1 when a part failed."""
    stop, failures = Stop(), list[BaseException]()
    setup_telemetry(settings, "registry")

    def failed(error: BaseException) -> None:
        failures.append(error)
        stop.ask()

    store = shared.store.connect(settings)
    engine = open_database(settings.effective_db_url("registry"))
    bus = shared.bus.connect(settings.bus_url, f"registry-{settings.node}")
    serve_operations(settings.metrics_port, {"database": lambda: ping(engine), "store": store.ping, "bus": bus.ping})
    needs = (
        need_database(engine, "services.registry.migrations", settings),
        shared.store.need(store, settings),
        shared.bus.need(bus, settings),
    )
    if not all(need.wait(stop.wait) for need in needs):
        bus.close()
        return 0
    service = Service(engine, store, bus, failed)
    service.start()
    log.info("started")
    stop.wait_until_asked()
    log.info("stops")
    service.stop()
    return 1 if failures else 0
