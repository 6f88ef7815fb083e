"""The composition root of the gateway: settings in, an ASGI application out."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvicorn
from anyio import to_thread
from fastapi import FastAPI
from setproctitle import setproctitle
from sqlalchemy import Engine
from structlog import get_logger

import shared.bus
import shared.replies
import shared.requests
import shared.store
from services.gateway import errors, routes
from services.gateway.auth import RequireKey
from services.gateway.beginning import Beginning
from services.gateway.gateway import Gateway
from services.gateway.inference import InferenceGateway, Shortcut
from services.gateway.keys import Keys
from services.gateway.limits import BoundedBody
from services.gateway.metrics import Measured, Metrics
from services.gateway.submissions import Submissions
from services.gateway.tracing import Traced
from services.gateway.view import View
from shared.bus.port import Bus
from shared.db import AWAY, migrate, open_database, why
from shared.readiness import Readiness
from shared.replies.port import Replies
from shared.requests.port import Requests
from shared.settings import Settings, SettingsError, die, load_settings
from shared.starting import Need, Watch
from shared.store.port import ObjectStore
from shared.telemetry import setup_telemetry

log = get_logger("gateway")

DID_NOT_START = 3
"""The exit code where the address is taken, or the application failed to begin; uvicorn has said which."""


def create_app(
    settings: Settings,
    bus: Bus,
    store: ObjectStore,
    requests: Requests,
    replies: Replies,
    engine: Engine,
    refused: Callable[[SettingsError], None] = lambda error: log.error("refused", reason=str(error)),
) -> FastAPI:
    """The application. Nothing runs and no table is touched before its lifespan begins; its end closes them all.

    `refused` is told, on another thread, what no waiting mends.
    """
    submissions = Submissions(engine, bus, settings)
    view = View(engine, bus, submissions)
    keys = Keys(engine, trial=settings.dev)
    inference = InferenceGateway(settings, bus, requests, replies)
    gateway = Gateway(settings, bus, store, keys, view, submissions, inference)
    metrics = Metrics(gateway)

    def prepare() -> None:
        migrate(engine, "services.gateway.migrations")
        keys.ensure_first(settings)

    def go() -> None:
        submissions.start()
        view.start()

    database = Need("the database", prepare, AWAY, settings.init_timeout_s, why)
    beginning = Beginning(database, go, refused)
    queues = [shared.bus.need(bus, settings), shared.replies.need(settings), shared.requests.need(settings)]
    servers = Watch([*queues, shared.store.need(store, settings)], refused)

    def stop() -> None:
        """Who reads, who writes, then what they read from and wrote to."""
        servers.stop()
        beginning.stop()
        view.stop()
        submissions.stop()
        bus.close()
        engine.dispose()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await to_thread.run_sync(beginning.start)
        servers.start()
        await inference.start()
        yield
        await inference.stop()
        await to_thread.run_sync(stop)

    app = FastAPI(title="LLM OS", version="0.1.0", lifespan=lifespan, description=routes.DESCRIPTION)
    app.state.beginning = beginning
    app.state.gateway = gateway
    app.state.metrics = metrics
    app.state.readiness = Readiness(routes.operations.checks_of(gateway))
    errors.install(app)
    routes.mount(app, inference.router)
    # The last one added is the outermost.
    app.add_middleware(Shortcut, answering=inference.answering)
    app.add_middleware(BoundedBody, limit_bytes=settings.max_body_bytes)
    app.add_middleware(RequireKey, keys=keys)
    app.add_middleware(Measured, metrics=metrics)
    if settings.traces_url:
        app.add_middleware(Traced)
    return app


def build(settings: Settings, refused: Callable[[SettingsError], None]) -> FastAPI:
    """The application over what the settings name."""
    return create_app(
        settings,
        shared.bus.connect(settings.bus_url, client_id=f"gateway-{settings.node}"),
        shared.store.connect(settings),
        shared.requests.connect(settings.effective_requests_url),
        shared.replies.connect(settings.redis_url),
        open_database(settings.effective_db_url("gateway")),
        refused,
    )


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    setproctitle("llmos: gateway")
    try:
        settings = load_settings()
        setup_telemetry(settings, "gateway")
    except SettingsError as error:
        die(error)
    for number in (signal.SIGTERM, signal.SIGINT):
        # Before uvicorn takes the signals over there is nothing to stop. It stops in order, and raises them once more.
        signal.signal(number, lambda *_: sys.exit(0))
    refusals: list[SettingsError] = []

    def refused(error: SettingsError) -> None:
        refusals.append(error)
        server.should_exit = True

    try:
        app = build(settings, refused)
        app.state.beginning.prepare()
    except SettingsError as error:
        die(error)
    server = uvicorn.Server(config(app, settings))
    server.run()
    if refusals:
        die(refusals[0])
    if not server.started:
        sys.exit(DID_NOT_START)


def config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
    )
