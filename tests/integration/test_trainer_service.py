"""The service as it is started by people, on real servers: a bus that keeps, and a Redis for the doorbell."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.bus.port import Record
from shared.bus.valkey import ValkeyBus
from shared.contracts.jobs import (
    AttemptStarted,
    AttemptSucceeded,
    CheckpointSaved,
    DesiredAttempt,
    JobSpec,
    Place,
    Wish,
)
from shared.contracts.message import Message
from shared.contracts.nodes import NodeHeartbeat
from shared.contracts.topics import ATTEMPTS_DESIRED, JOBS_EVENTS, NODES_HEARTBEATS
from shared.doorbell.celery import CeleryDoorbell
from tests.s3_server import s3_server
from tests.servers import valkey
from tests.waiting import eventually


class Ear:
    """Keeps what it hears, each message once: the bus may show one twice."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._heard: dict[str, Message] = {}

    def batch(self, records: Sequence[Record]) -> None:
        for record in records:
            self.one(record)

    def one(self, record: Record) -> None:
        with self._guard:
            if record.message:
                self._heard.setdefault(record.message.id, record.message)

    def kinds(self) -> list[type[Message]]:
        with self._guard:
            return [type(message) for message in self._heard.values()]


@contextmanager
def trainer(home: Path, bus_url: str, redis_url: str) -> Iterator[subprocess.Popen[bytes]]:
    settings = {"LLMOS_HOME": str(home), "LLMOS_NODE": "here", "LLMOS_BUS_URL": bus_url, "LLMOS_REDIS_URL": redis_url}
    process = subprocess.Popen([sys.executable, "-m", "services.trainer"], env={**os.environ, **settings})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_service_runs_an_attempt_though_both_servers_are_killed_meanwhile(tmp_path: Path) -> None:
    with (
        valkey(durable=True) as kept,
        valkey(durable=False) as passing,
        trainer(tmp_path, kept.bus_url, passing.unix_url) as process,
    ):
        bus, bell = ValkeyBus(kept.bus_url, "test"), CeleryDoorbell(passing.unix_url)
        events, nodes = Ear(), Ear()
        bus.subscribe(JOBS_EVENTS, "test", events.batch)
        bus.follow(NODES_HEARTBEATS, nodes.one)
        eventually(lambda: NodeHeartbeat in nodes.kinds(), 60)
        spec = JobSpec(type="probe", params={"steps": 60, "step_s": 0.1, "checkpoint_every": 20}, output="thing")
        wish = DesiredAttempt(job_id="j", attempt=1, version=1, spec=spec, places=[Place(node="here")], wish=Wish.run)
        bus.publish(ATTEMPTS_DESIRED, "j", wish).result(10)
        bell.ring("here", "j", 1)
        eventually(lambda: CheckpointSaved in events.kinds(), 60)
        for server in (kept, passing):
            server.kill()
            server.start()
        eventually(lambda: AttemptSucceeded in events.kinds(), 60)
        assert events.kinds() == [AttemptStarted, *3 * [CheckpointSaved], AttemptSucceeded]
        process.terminate()
        assert process.wait(timeout=60) == 0
        bell.close()
        bus.close()


def test_a_trainer_that_its_store_refuses_was_never_a_node_and_took_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(tmp_path / "s3") as s3, valkey(durable=True) as kept:
        bus = ValkeyBus(kept.bus_url, "test")
        place = [Place(node="here")]
        spec = JobSpec(type="probe", output="thing")
        wish = DesiredAttempt(job_id="j", attempt=1, version=1, spec=spec, places=place, wish=Wish.run)
        bus.publish(ATTEMPTS_DESIRED, "j", wish).result(10)
        monkeypatch.setenv("LLMOS_STORE_URL", f"s3://{s3.endpoint}/llmos")
        monkeypatch.setenv("LLMOS_S3_ACCESS_KEY", s3.access_key)
        monkeypatch.setenv("LLMOS_S3_SECRET_KEY", "guess")
        with trainer(tmp_path, kept.bus_url, "memory://") as process:
            assert process.wait(timeout=60) == 2
        nodes, read = Ear(), threading.Event()
        bus.follow(NODES_HEARTBEATS, nodes.one, read.set)
        assert read.wait(20)
        assert nodes.kinds() == []
        bus.close()
