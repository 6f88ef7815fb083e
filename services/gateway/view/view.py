"""Wires the topics to the tables, and the tables to whoever asks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from structlog import get_logger

from services.gateway.submissions import Submissions
from services.gateway.view import saving
from services.gateway.view.artifacts import Artifacts
from services.gateway.view.bell import Bell
from services.gateway.view.deployments import Deployments
from services.gateway.view.files import Files
from services.gateway.view.fleet import Fleet
from services.gateway.view.follower import Follower
from services.gateway.view.jobs import Jobs
from services.gateway.view.records import JobRecords
from services.gateway.view.reports import Reports
from shared.bus.port import Bus, BusError, Record, Subscription
from shared.contracts.topics import (
    DEPLOYMENTS_DESIRED,
    DEPLOYMENTS_STATUS,
    JOBS_EVENTS,
    JOBS_LOGS,
    JOBS_STATE,
    NODES_HEARTBEATS,
    REGISTRY_EVENTS,
    REGISTRY_STATE,
    Topic,
)
from shared.stopping import all_at_once

log = get_logger("gateway.view")

GROUP = "gateway"
GROUP_TOPICS = (JOBS_EVENTS, JOBS_LOGS, REGISTRY_EVENTS)
RETRY_S = 1.0
PRUNE_EVERY_S = 3600.0


class View:
    """Starts in the background and tries for as long as the bus is away; `ready` says what is missing."""

    def __init__(self, engine: Engine, bus: Bus, submissions: Submissions) -> None:
        self.bell = Bell()
        self.jobs = Jobs(engine)
        self.records = JobRecords(engine)
        self.artifacts = Artifacts(engine)
        self.files = Files(engine)
        self.deployments = Deployments(engine)
        self.fleet = Fleet()
        self._bus = bus
        self._submissions = submissions
        self._reports = Reports(engine, self.bell)
        self.followers = [
            Follower(engine, JOBS_STATE, saving.save_jobs, saving.sweep_jobs, self._seen),
            Follower(engine, REGISTRY_STATE, saving.save_artifacts, saving.sweep_artifacts, self._seen),
            Follower(engine, DEPLOYMENTS_DESIRED, saving.save_deployments, saving.sweep_deployments, self._seen),
        ]
        self._in_memory = {DEPLOYMENTS_STATUS: self.fleet.on_replica, NODES_HEARTBEATS: self.fleet.on_heartbeat}
        self._caught_up = {topic: threading.Event() for topic in self._in_memory}
        self._subscriptions: list[Subscription] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gateway:view", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
        followers = [follower.stop for follower in self.followers]
        all_at_once([*followers, *(subscription.close for subscription in self._subscriptions)])

    def ready(self) -> str | None:
        """None, or which topics the view has not caught up with yet."""
        behind = [follower.topic.name for follower in self.followers if not follower.caught_up.is_set()]
        behind += [topic.name for topic, event in self._caught_up.items() if not event.is_set()]
        return f"the view is catching up with {', '.join(behind)}" if behind else None

    def _seen(self, records: Sequence[Record]) -> None:
        self.bell.ring(record.key for record in records)
        self._submissions.outbox.nudge()

    def _run(self) -> None:
        for connect in self._connections():
            self._until_there(connect)
        pruned_at = datetime.now(UTC)
        while not self._stopping.wait(RETRY_S):
            if datetime.now(UTC) - pruned_at > timedelta(seconds=PRUNE_EVERY_S):
                pruned_at = datetime.now(UTC)
                self._prune()

    def _connections(self) -> list[Callable[[], None]]:
        handlers = dict(zip(GROUP_TOPICS, self._handlers(), strict=True))
        return [
            *(lambda follower=follower: follower.start(self._bus) for follower in self.followers),
            *(lambda topic=topic, on=on: self._follow(topic, on) for topic, on in self._in_memory.items()),
            *(lambda topic=topic, handle=handle: self._subscribe(topic, handle) for topic, handle in handlers.items()),
        ]

    def _handlers(self) -> Sequence[Callable[[Sequence[Record]], None]]:
        return self._reports.on_job_records, self._reports.on_job_records, self._on_registry_events

    def _on_registry_events(self, records: Sequence[Record]) -> None:
        self._reports.on_registry_events(records)
        self._submissions.outbox.nudge()

    def _follow(self, topic: Topic, on: Callable[[Record], None]) -> None:
        def all_shown() -> None:
            self.fleet.all_shown(topic)
            self._caught_up[topic].set()

        self._subscriptions.append(self._bus.follow(topic, on, all_shown))

    def _subscribe(self, topic: Topic, handle: Callable[[Sequence[Record]], None]) -> None:
        self._subscriptions.append(self._bus.subscribe(topic, GROUP, handle))

    def _until_there(self, connect: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            try:
                connect()
            except BusError as error:
                log.warning("waiting_for_bus", reason=str(error))
                self._stopping.wait(RETRY_S)
            else:
                return

    def _prune(self) -> None:
        try:
            self._reports.prune()
        except SQLAlchemyError as error:
            log.warning("prune_put_off", reason=str(error).splitlines()[0])
