"""The trainer's composition root: settings in, objects built, signals handled, an orderly end."""

from __future__ import annotations

import signal
import time
from uuid import uuid4

import structlog
from setproctitle import setproctitle

import shared.bus
import shared.store
from services.trainer.agent import Agent
from services.trainer.doorbell import DoorbellWorker
from services.trainer.heartbeat import Heartbeat
from services.trainer.leftovers import RunFolder
from services.trainer.outbox import Contact
from services.trainer.run import Run
from services.trainer.workplace import Workplace
from shared.abandoned import clear_abandoned
from shared.bus.port import Bus
from shared.capacity import measure_capacity
from shared.contracts.jobs import DesiredAttempt, Place
from shared.contracts.nodes import Role
from shared.contracts.topics import ATTEMPTS_DESIRED
from shared.node_name import NodeName, NodeTaken
from shared.operations import serve_operations
from shared.settings import Settings, SettingsError, die, load_settings
from shared.store.cache import ArtifactCache
from shared.store.port import ObjectStore
from shared.telemetry import setup_telemetry

log = structlog.get_logger(__name__)

DAY_S = 24 * 3600
REPORT_TIME_S = 20.0
"""After the grace for checkpoints: time to upload them and to report, before runs are abandoned."""


def main() -> None:
    try:
        settings = load_settings()
        bus = shared.bus.connect(settings.bus_url, f"trainer-{settings.node}")
        store = shared.store.connect(settings)
        setup_telemetry(settings, "trainer")
        setproctitle("llmos: trainer")
        serve_operations(settings.metrics_port, {"bus": bus.ping, "store": store.ping})
        serve(settings, bus, store)
    except (SettingsError, NodeTaken) as error:
        die(error)
    except KeyboardInterrupt:
        die("interrupted at the start")


def serve(settings: Settings, bus: Bus, store: ObjectStore) -> None:
    """Be the node's trainer until SIGTERM or SIGINT. Call on the main thread. Raises NodeTaken, SettingsError."""
    home = settings.home / "trainer"
    with NodeName(home, settings.node, Role.trainer) as name:
        folder = RunFolder(home / settings.node / "runs")
        if ended := folder.end_leftovers():
            log.info("leftovers_cleared", runs=ended)
        if gone := clear_abandoned(home, lambda left: RunFolder(left / "runs").end_leftovers()):
            log.info("abandoned_cleared", nodes=gone)
        agent, heartbeat = assemble(settings, bus, store, folder, name.boot_id)
        for server in (shared.bus.need(bus, settings), shared.store.need(store, settings)):
            server.wait(_pause)  # before any job is taken, which only who has both can run
        taken: list[NodeTaken] = []

        def refused(error: NodeTaken) -> None:
            taken.append(error)
            agent.shut_down()

        name.claim(bus, settings.heartbeat_s, settings.heartbeat_timeout_s, on_taken=refused)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: agent.shut_down())
        heartbeat.start()
        following = bus.follow(ATTEMPTS_DESIRED, agent.on_desired, agent.caught_up)
        doorbell = listen(settings, agent)
        log.info("trainer_ready")
        agent.run(settings.stop_grace_s + REPORT_TIME_S)
        log.info("trainer_stopping")
        if doorbell:
            doorbell.stop()
        following.close()
        if taken:
            heartbeat.fall_silent()
        else:
            heartbeat.say_farewell()
        bus.close()
    if taken:
        raise taken[0]


def assemble(
    settings: Settings, bus: Bus, store: ObjectStore, folder: RunFolder, boot_id: str
) -> tuple[Agent, Heartbeat]:
    """The agent and its heartbeat, not started yet."""
    contact = Contact()
    capacity = measure_capacity(settings.slots)
    cache = ArtifactCache(store, settings.home / "cache", settings.cache_bytes, settings.cache_max_age_days * DAY_S)
    workplace = Workplace(settings, bus, store, cache, folder, capacity, contact)

    def start_run(desired: DesiredAttempt, place: Place) -> Run:
        return Run(desired, place, uuid4().hex, workplace, agent.changed)

    agent = Agent(settings.node, start_run, contact, settings.orphan_timeout_s, lambda: heartbeat.soon())
    heartbeat = Heartbeat(bus, contact, settings.node, boot_id, capacity, agent.listed, settings.heartbeat_s)
    return agent, heartbeat


def listen(settings: Settings, agent: Agent) -> DoorbellWorker | None:
    """The doorbell, where there is a Redis to hang it on."""
    if settings.redis_url.startswith("memory:"):
        return None
    doorbell = DoorbellWorker(settings.redis_url, settings.node, agent.look)
    doorbell.start()
    return doorbell


def _pause(pause_s: float) -> bool:
    """Signals have their default meaning while nothing runs yet, so nobody is told to stop."""
    time.sleep(pause_s)
    return False
