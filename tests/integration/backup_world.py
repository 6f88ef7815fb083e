"""A whole system in this process: gateway, scheduler, registry, and a trainer that makes real outputs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from services.gateway.main import create_app
from services.registry.main import Service as Registry
from services.scheduler.main import Service as Scheduler
from services.scheduler.truth import take_over
from shared.bus.port import Bus
from shared.contracts.artifacts import run_prefix
from shared.contracts.jobs import AttemptSucceeded, CheckpointRef, CheckpointSaved, Output
from shared.contracts.topics import JOBS_STATE, Topic
from shared.db import migrate, open_database
from shared.doorbell.memory import MemoryDoorbell
from shared.replies.memory import MemoryReplyHub
from shared.requests.memory import MemoryRequests
from shared.settings import Settings
from shared.store import connect
from shared.store.port import ObjectStore
from shared.store.staging import stage_folder
from tests.integration.gateway_world import Running
from tests.integration.scheduler_world import FakeTrainer
from tests.waiting import eventually


class StagingTrainer(FakeTrainer):
    """Saves a checkpoint and stages an output for every run, and ends it; not where the output is called `held…`."""

    def __init__(self, bus: Bus, store: ObjectStore, folder: Path, slots: int = 4) -> None:
        self.store = store
        self.folder = folder
        super().__init__(bus, "n1", slots=slots, finish=True)

    def succeed(self, run_id: str) -> None:
        held = self.runs[run_id]
        prefix = run_prefix(held.job_id, held.attempt, run_id)
        self._stage(f"{prefix}/checkpoints/1", "state.json", run_id)
        self.say(CheckpointSaved, run_id, checkpoint=self._checkpoint(f"{prefix}/checkpoints/1", run_id))
        if str(held.spec.output).startswith("held"):
            return
        self._stage(f"{prefix}/outputs/out", "report.json", held.job_id)
        output = Output(name=held.spec.output, kind=held.spec.output_kind, staged_prefix=f"{prefix}/outputs/out")
        self.say(AttemptSucceeded, run_id, outputs=[output])
        self.end(run_id)

    def _stage(self, prefix: str, name: str, text: str) -> None:
        source = self.folder / prefix.replace("/", "_")
        source.mkdir(parents=True)
        (source / name).write_text(text * 100)
        (source / "equal.json").write_text("the same in every output")
        stage_folder(self.store, prefix, source, {})

    def _checkpoint(self, prefix: str, run_id: str) -> CheckpointRef:
        held = self.runs[run_id]
        return CheckpointRef(step=1, key=prefix, attempt=held.attempt, run_id=run_id, at=held.at)


class Whole:
    """What runs, and how to ask it."""

    def __init__(self, gateway: Running, scheduler: Scheduler, bus: Bus) -> None:
        self.gateway = gateway
        self.scheduler = scheduler
        self._shown: dict[Topic, set[str]] = {JOBS_STATE: set()}
        for topic, keys in self._shown.items():
            bus.follow(topic, lambda record, keys=keys: keys.add(record.key))  # type: ignore[misc]

    def shown(self, topic: Topic) -> set[str]:
        """The keys that a compacted topic has shown since the start."""
        return set(self._shown[topic])

    def submit(self, **job: Any) -> str:
        return self.gateway.submit(**job)

    def until(self, job_id: str, status: str, timeout_s: float = 30) -> dict[str, Any]:
        eventually(lambda: self.gateway.job(job_id)["status"] == status, timeout_s, f"{job_id} {status}")
        return self.gateway.job(job_id)

    def events(self, job_id: str) -> list[dict[str, Any]]:
        answer = self.gateway.http.get(f"/v1/jobs/{job_id}/events", params={"limit": 100})
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["data"]
        return found


@contextmanager
def running_system(
    settings: Settings, new_bus: Callable[[], Bus], scratch: Path, *, trainer: bool = True
) -> Iterator[Whole]:
    """All of it on the databases and the store of the settings, over a bus that is empty at the start."""
    store = connect(settings)
    with ExitStack() as stack:

        def own_bus() -> Bus:
            bus = new_bus()
            stack.callback(bus.close)
            return bus

        registry_db = open_database(settings.effective_db_url("registry"))
        stack.callback(registry_db.dispose)
        migrate(registry_db, "services.registry.migrations")
        registry = Registry(registry_db, store, own_bus())
        registry.start()
        stack.callback(registry.stop)
        scheduler_db = open_database(settings.effective_db_url("scheduler"))
        stack.callback(scheduler_db.dispose)
        migrate(scheduler_db, "services.scheduler.migrations")
        scheduler = Scheduler(settings, scheduler_db, own_bus(), MemoryDoorbell(), take_over(scheduler_db))
        scheduler.start()
        stack.callback(scheduler.stop)
        gateway = stack.enter_context(_gateway(settings, new_bus(), store))
        if trainer:
            node = StagingTrainer(own_bus(), store, scratch)
            stack.callback(node.die)
        yield Whole(gateway, scheduler, own_bus())


@contextmanager
def _gateway(settings: Settings, bus: Bus, store: ObjectStore) -> Iterator[Running]:
    database = open_database(settings.effective_db_url("gateway"))
    app = create_app(settings, bus, store, MemoryRequests(), MemoryReplyHub().replies(), database)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=3))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        eventually(lambda: server.started, what="the gateway's start")
        running = Running(app, f"http://127.0.0.1:{listening.getsockname()[1]}")
        try:
            running.wait_until_ready()
            yield running
        finally:
            running.close()
            server.should_exit = True
            thread.join(20)
            bus.close()
