"""PostgreSQL is not there yet, goes away in the middle, and comes back: everybody waits, says so, and goes on."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.bus.memory import MemoryBus, MemoryServer
from shared.bus.valkey import ValkeyBus
from shared.contracts.artifacts import ArtifactKind, CommandDone
from shared.db import migrate, open_database
from shared.store.local import LocalStore
from tests.faults.posting import Posting
from tests.integration.gateway_world import GatewayWorld
from tests.integration.registry_world import Client, start_registry
from tests.integration.scheduler_world import World
from tests.postgres_server import PostgresServer, postgres_server
from tests.servers import ValkeyServer, valkey
from tests.service_process import start
from tests.waiting import eventually


@pytest.fixture
def mortal() -> Iterator[PostgresServer]:
    """A server that a test may stop."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def db_url(mortal: PostgresServer) -> str:
    return mortal.url(mortal.new_database())


@pytest.fixture
def world(tmp_path: Path, db_url: str) -> Iterator[GatewayWorld]:
    world = GatewayWorld(tmp_path, db_url=db_url)
    yield world
    world.close()


def test_no_202_is_lost_while_the_database_goes_and_comes(world: GatewayWorld, mortal: PostgresServer) -> None:
    with world.gateway() as here:
        posting = Posting(here.http)
        for _ in range(2):
            before = len(posting.accepted)
            eventually(lambda before=before: len(posting.accepted) > before + 5, 30)  # type: ignore[misc]
            mortal.stop()
            refused = len(posting.refused)
            eventually(lambda refused=refused: len(posting.refused) > refused, 30)  # type: ignore[misc]
            missing = here.http.get("/readyz")
            assert missing.status_code == 503
            assert "database" in missing.json()["missing"]
            mortal.start()
        before = len(posting.accepted)
        eventually(lambda: len(posting.accepted) > before + 5, 30)
        posting.stop()
        posting.check_refusals()
        eventually(lambda: set(posting.accepted) <= set(world.scheduler.jobs), 30)
        jobs = [submit.job_id for submit in {submit.id: submit for submit in world.scheduler.submits}.values()]
        assert len(jobs) == len(set(jobs))
        here.wait_until_ready()
        eventually(lambda: all(here.job(job_id)["version"] for job_id in posting.accepted), 30)


def test_requests_while_the_database_hangs_are_told_to_come_again(world: GatewayWorld, mortal: PostgresServer) -> None:
    """Its host still answers for it, so that every connection looks alive."""
    with world.gateway() as here:
        before = here.submit()
        with mortal.frozen():
            for _ in range(3):
                refused = here.http.post("/v1/jobs", json={"type": "probe"}, timeout=40)
                assert refused.status_code == 503
                assert refused.headers["Retry-After"]
        assert here.submit() != before


def test_a_gateway_starts_before_its_database_and_works_once_it_is_there(
    world: GatewayWorld, mortal: PostgresServer
) -> None:
    mortal.stop()
    with world.gateway(ready=False) as here:
        assert here.http.get("/healthz").status_code == 200
        missing = here.http.get("/readyz")
        assert missing.status_code == 503
        assert "database" in missing.json()["missing"]
        refused = here.http.post("/v1/jobs", json={"type": "probe"})
        assert refused.status_code == 503
        assert "Retry-After" in refused.headers
        mortal.start()
        here.wait_until_ready()
        here.submit()


def test_a_registry_goes_on_where_it_was(mortal: PostgresServer, db_url: str, tmp_path: Path) -> None:
    store, server = LocalStore(tmp_path / "objects"), MemoryServer()
    service = start_registry(tmp_path, store, MemoryBus(server), db_url)
    client = Client(store, MemoryBus(server), tmp_path)
    client.published("m", {"a": b"1"})
    mortal.stop()
    waiting = client.send(client.publication("m", {"a": b"2"}, ArtifactKind.report))
    mortal.start()
    assert isinstance(client.answer(waiting, 30), CommandDone)
    client.sees(lambda: set(client.versions("m")) == {1, 2})
    service.stop()


def test_two_registries_share_the_commands_of_one_database(mortal: PostgresServer, db_url: str, tmp_path: Path) -> None:
    store, server = LocalStore(tmp_path / "objects"), MemoryServer()
    services = [start_registry(tmp_path, store, MemoryBus(server), db_url) for _ in range(2)]
    client = Client(store, MemoryBus(server), tmp_path)
    names = [f"m{number % 5}" for number in range(30)]
    sent = [
        client.send(client.publication(name, {"a": str(number).encode()}, ArtifactKind.report))
        for number, name in enumerate(names)
    ]
    pins = [answer.artifact for command in sent if isinstance(answer := client.answer(command, 60), CommandDone)]
    assert sorted(pin.ref for pin in pins if pin) == sorted(
        f"m{name}@{version + 1}" for name in range(5) for version in range(6)
    )
    assert not mortal.execute("SELECT * FROM inbox", db_url.rpartition("/")[2])
    for service in services:
        service.stop()


# ── The scheduler, as a process ──


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with valkey(durable=True) as server:
        yield server


@pytest.fixture
def jobs(tmp_path: Path, server: ValkeyServer) -> Iterator[World]:
    world = World(tmp_path, lambda: ValkeyBus(server.bus_url, "test"))
    yield world
    world.close()


def test_a_scheduler_goes_on_by_itself_when_its_database_is_back(
    jobs: World,
    server: ValkeyServer,
    mortal: PostgresServer,
    db_url: str,
    processes: list[subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    mortal.stop()
    processes.append(start("scheduler", tmp_path, server.bus_url, log, LLMOS_DB_URL=db_url))
    eventually(lambda: "waits for the database" in log.read_text(), 30)
    mortal.start()
    eventually(lambda: "leads in epoch 1" in log.read_text(), 30)
    registry = jobs.registry()
    jobs.trainer(slots=2, finish=True)
    jobs.until(jobs.submit(), "succeeded", 30)
    mortal.stop()
    waiting = [jobs.submit() for _ in range(10)]
    eventually(lambda: "leads no longer" in log.read_text(), 30)
    mortal.start()
    for job in waiting:
        jobs.until(job, "succeeded", 60)
    assert "leads in epoch 2" in log.read_text()
    assert len(registry.made) == 11
    processes[0].terminate()
    assert processes[0].wait(30) == 0


def test_jobs_succeed_once_though_one_leader_after_the_other_is_killed(
    jobs: World, server: ValkeyServer, db_url: str, processes: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """Two schedulers on one PostgreSQL: whoever leads is killed, the other takes over, a new one stands by."""
    migrate(open_database(db_url), "services.scheduler.migrations")
    registry = jobs.registry()
    jobs.trainer(slots=4, finish=True)
    sent = [jobs.submit() for _ in range(60)]
    logs: list[Path] = []

    def stand() -> None:
        logs.append(tmp_path / f"log-{len(logs)}")
        processes.append(start("scheduler", tmp_path, server.bus_url, logs[-1], LLMOS_DB_URL=db_url))

    def leader() -> int | None:
        alive = [number for number, process in enumerate(processes) if process.poll() is None]
        return next((number for number in alive if "leads in epoch" in logs[number].read_text()), None)

    def finished() -> int:
        return sum((state := jobs.state(job)) is not None and state.status == "succeeded" for job in sent)

    stand()
    stand()
    for wanted in (10, 30):
        eventually(lambda wanted=wanted: finished() >= wanted, 60, "jobs that end")  # type: ignore[misc]
        number = eventually(lambda: (found := leader()) is not None and [found], 30)
        assert number
        processes[number[0]].kill()
        processes[number[0]].wait()
        stand()
    for job in sent:
        jobs.until(job, "succeeded", 60)
    assert len(registry.made) == len(sent)


def test_a_leader_that_freezes_is_followed_and_stands_by_when_it_goes_on(
    jobs: World, server: ValkeyServer, db_url: str, processes: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """As a host that vanishes: no connection is closed, and nothing is said."""
    logs = [tmp_path / "first", tmp_path / "second"]
    registry = jobs.registry()
    jobs.trainer(slots=4, finish=True)
    processes.append(start("scheduler", tmp_path, server.bus_url, logs[0], LLMOS_DB_URL=db_url))
    eventually(lambda: "leads in epoch 1" in logs[0].read_text(), 30)
    processes.append(start("scheduler", tmp_path, server.bus_url, logs[1], LLMOS_DB_URL=db_url))
    eventually(lambda: "stands by" in logs[1].read_text(), 30)
    processes[0].send_signal(signal.SIGSTOP)
    eventually(lambda: "leads in epoch 2" in logs[1].read_text(), 60)
    processes[0].send_signal(signal.SIGCONT)
    eventually(lambda: logs[0].read_text().count("stands by until") == 2, 60)
    sent = [jobs.submit() for _ in range(5)]
    for job in sent:
        jobs.until(job, "succeeded", 30)
    assert [process.poll() for process in processes] == [None, None]
    assert len(registry.made) == len(sent)
