"""Composition root: settings in, objects built, threads started and stopped."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

import shared.bus
import shared.store
from services.registry import metrics
from services.registry.answers import forget_old_answers
from services.registry.comparison import Comparison
from services.registry.handlers import Handlers
from services.registry.outbox import Outbox
from shared.bus.port import Bus, BusError
from shared.contracts.topics import REGISTRY_COMMANDS
from shared.db import migrate, open_database
from shared.settings import Settings
from shared.store.port import ObjectStore, StoreError
from shared.telemetry import setup_telemetry

log = structlog.get_logger("registry")

GROUP = "registry"
SIGNALS = {signal.SIGTERM, signal.SIGINT}


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
        self._on_failure = on_failure
        self._threads: dict[Comparison | Outbox, threading.Thread] = {}

    def start(self) -> None:
        with self._engine.begin() as connection:
            forget_old_answers(connection)
        self._watch()
        for part in (self.comparison, self.outbox):
            thread = threading.Thread(target=self._run, args=(part.run,), name=type(part).__name__, daemon=True)
            thread.start()
            self._threads[part] = thread
        self._bus.subscribe(REGISTRY_COMMANDS, GROUP, self.handlers.commands, on_broken=self.handlers.broken)

    def stop(self) -> None:
        """After the command at hand; what is in the outbox stays for the next start."""
        self._end(self.comparison)
        self._bus.close()
        self._end(self.outbox)

    def _end(self, part: Comparison | Outbox) -> None:
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

    def _watch(self) -> None:
        metrics.OUTBOX_AGE.set_function(self.outbox.age_s)
        topic = REGISTRY_COMMANDS
        metrics.LAG.labels(topic.name).set_function(lambda: self._bus.lag(topic, GROUP))
        metrics.DLQ.labels(topic.name).set_function(lambda: self._bus.dlq_depth(topic))


class Stop:
    """SIGTERM and SIGINT, waited for instead of handled.

    A handler runs in the main thread alone; it would come late or never while that thread waits for a lock.
    """

    def __init__(self) -> None:
        self.asked = False
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # before any thread starts, so that all inherit it

    def wait(self, timeout_s: float) -> bool:
        """Whether a stop was asked for by then."""
        self.asked = self.asked or signal.sigtimedwait(SIGNALS, timeout_s) is not None
        return self.asked

    def ask(self) -> None:
        """From any thread."""
        os.kill(os.getpid(), signal.SIGTERM)


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
    there = (
        until_it_works("the database", lambda: migrate(engine, "services.registry.migrations"), stop)
        and until_it_works("the object store", store.ping, stop)
        and until_it_works("the bus", bus.ping, stop)
    )
    if not there:
        bus.close()
        return 0
    service = Service(engine, store, bus, failed)
    service.start()
    log.info("started")
    while not stop.wait(3600):
        pass
    log.info("stops")
    service.stop()
    return 1 if failures else 0


def until_it_works(what: str, attempt: Callable[[], None], stop: Stop) -> bool:
    """Wait for what this process needs to be there. False when it is told to stop before."""
    while not stop.asked:
        try:
            attempt()
        except (BusError, OperationalError, StoreError) as error:
            log.warning("waits", what=what, error=str(error))
            stop.wait(1.0)
        else:
            return True
    return False
