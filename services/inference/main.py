"""Composition root of the node agent: settings in, objects built, an orderly end."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import structlog
from setproctitle import setproctitle

import shared.bus
import shared.replies
import shared.requests
import shared.store
from services.inference.agent import Agent
from services.inference.handlers import Handlers
from services.inference.heartbeat import Heartbeat
from services.inference.keeper import Node
from services.inference.leftovers import Leftovers
from services.inference.process import Launcher
from services.inference.pulling import Puller
from services.inference.reports import StatusReports, earlier_replicas
from shared.abandoned import clear_abandoned
from shared.bus.port import Bus
from shared.capacity import measure_capacity
from shared.contracts.nodes import Role
from shared.contracts.topics import DEPLOYMENTS_DESIRED
from shared.node_name import NodeName, NodeTaken
from shared.operations import serve_operations
from shared.readiness import Checks
from shared.settings import Settings, SettingsError, die, load_settings
from shared.starting import Watch
from shared.store.cache import ArtifactCache
from shared.store.port import ObjectStore
from shared.telemetry import setup_telemetry

log = structlog.get_logger(__name__)

DAY_S = 24 * 3600
LAST_WORDS_S = 5.0


def main() -> None:
    try:
        settings = load_settings()
        bus = shared.bus.connect(settings.bus_url, f"inference-{settings.node}")
        store = shared.store.connect(settings)
        setup_telemetry(settings, "inference")
        setproctitle("llmos: inference")
        replies = partial(shared.replies.ping, settings.redis_url)
        requests = partial(shared.requests.ping, settings.effective_requests_url)
        checks: Checks = {"bus": bus.ping, "store": store.ping, "replies": replies, "requests": requests}
        serve_operations(settings.metrics_port, checks)
        with NodeName(settings.home / "inference", settings.node, Role.inference) as name:
            asyncio.run(serve(settings, bus, store, name))
    except (SettingsError, NodeTaken) as error:
        die(error)


async def serve(
    settings: Settings, bus: Bus, store: ObjectStore, name: NodeName, stop: asyncio.Event | None = None
) -> None:
    """Be the node's agent until SIGTERM or SIGINT, or until `stop` is set. Raises NodeTaken."""
    stop = stop or stop_at_signals()
    home = settings.home / "inference"
    folder = home / settings.node
    leftovers = Leftovers(folder / "replicas")
    left = leftovers.end_all()
    if gone := clear_abandoned(home, lambda left: Leftovers(left / "replicas").end_all()):
        log.info("abandoned_cleared", nodes=gone)

    def pause(pause_s: float) -> bool:
        time.sleep(pause_s)
        return stop.is_set()

    if not await asyncio.to_thread(shared.bus.need(bus, settings).wait, pause):
        return
    refusals: list[SettingsError | NodeTaken] = []
    refused = stopped_by(stop, refusals)
    needs = [shared.store.need(store, settings), shared.replies.need(settings), shared.requests.need(settings)]
    servers = Watch(needs, refused)
    servers.start()
    await asyncio.to_thread(name.claim, bus, settings.heartbeat_s, settings.heartbeat_timeout_s, stop.is_set, refused)
    node = assemble(settings, store, leftovers, folder)
    left += await earlier_replicas(bus, settings.node, stop)
    reports = StatusReports(bus)
    agent = Agent(node, reports, lambda: heartbeat.soon(), left)
    heartbeat = Heartbeat(bus, name, node.capacity, lambda: agent.replicas, settings.heartbeat_s)
    handlers = Handlers(agent, asyncio.get_running_loop())
    beating = asyncio.create_task(heartbeat.run())
    following = bus.follow(DEPLOYMENTS_DESIRED, handlers.on_desired, handlers.on_caught_up)
    log.info("inference_ready", cpus=node.capacity.cpus, devices=len(node.capacity.devices))
    await stop.wait()
    log.info("inference_stopping")
    await asyncio.to_thread(following.close)
    await agent.stop()
    await reports.close(LAST_WORDS_S)
    beating.cancel()
    if not any(isinstance(error, NodeTaken) for error in refusals):  # else it would speak for who has the name
        await heartbeat.say_farewell()
    servers.stop()
    await asyncio.to_thread(bus.close)
    if refusals:
        raise refusals[0]


def assemble(settings: Settings, store: ObjectStore, leftovers: Leftovers, folder: Path) -> Node:
    """What the keepers of this node share."""
    cache = ArtifactCache(store, settings.home / "cache", settings.cache_bytes, settings.cache_max_age_days * DAY_S)
    capacity = measure_capacity(settings.slots)
    return Node(
        settings=settings,
        capacity=capacity,
        puller=Puller(store, cache),
        launch=Launcher(settings, folder),
        leftovers=leftovers,
        available_bytes=lambda: min(capacity.memory_bytes, psutil.virtual_memory().available),
    )


def stop_at_signals() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def stopped_by(
    stop: asyncio.Event, refusals: list[SettingsError | NodeTaken]
) -> Callable[[SettingsError | NodeTaken], None]:
    """For other threads: keep a refusal, and stop."""
    loop = asyncio.get_running_loop()

    def refused(error: SettingsError | NodeTaken) -> None:
        refusals.append(error)
        loop.call_soon_threadsafe(stop.set)

    return refused
