"""`python -m services.scheduler` as its supervisor runs it: killed, told to stop, started wrongly."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.bus_worlds import MortalBusWorld, kafka_world, valkey_world
from tests.integration.scheduler_world import World
from tests.service_process import start
from tests.waiting import eventually

BUSES = {"valkey": valkey_world, "kafka": kafka_world}
"""Kafka is the one that all tests share, so only Valkey is killed."""


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[MortalBusWorld]:
    with BUSES[getattr(request, "param", "valkey")]() as server:
        yield server


@pytest.fixture
def world(tmp_path: Path, server: MortalBusWorld) -> Iterator[World]:
    world = World(tmp_path, server.connect)
    yield world
    world.close()


@pytest.mark.parametrize("server", BUSES, indirect=True)
def test_jobs_succeed_once_though_the_scheduler_is_killed_again_and_again(
    world: World, server: MortalBusWorld, processes: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    registry = world.registry()
    world.trainer(slots=4, finish=True)
    jobs = [world.submit() for _ in range(80)]

    def finished() -> int:
        return sum((state := world.state(job)) is not None and state.status == "succeeded" for job in jobs)

    for wanted in (10, 30, 50):
        processes.append(start("scheduler", tmp_path, server.url, log))
        eventually(lambda wanted=wanted: finished() >= wanted, 60, f"{wanted} jobs: {log.read_text()[-3000:]}")
        processes[-1].kill()
        processes[-1].wait()
    processes.append(start("scheduler", tmp_path, server.url, log))
    for job in jobs:
        world.until(job, "succeeded", timeout_s=60)
    assert len(registry.made) == len(jobs)


def test_a_standby_takes_over_when_the_leader_is_killed(
    world: World, server: MortalBusWorld, processes: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    logs = [tmp_path / "first", tmp_path / "second"]
    processes.append(start("scheduler", tmp_path, server.url, logs[0]))
    eventually(lambda: "leads in epoch 1" in logs[0].read_text(), 30)
    processes.append(start("scheduler", tmp_path, server.url, logs[1]))
    eventually(lambda: "stands by" in logs[1].read_text(), 30)
    processes[0].kill()
    job = world.submit()
    world.registry()
    world.trainer(finish=True)
    world.until(job, "succeeded", timeout_s=30)
    assert "leads in epoch 2" in logs[1].read_text()


def test_the_process_stops_in_order_when_it_is_told_to(
    world: World, server: MortalBusWorld, processes: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    processes.append(start("scheduler", tmp_path, server.url, log))
    eventually(lambda: "leads" in log.read_text(), 30)
    processes[0].send_signal(signal.SIGTERM)
    assert processes[0].wait(30) == 0


def test_it_waits_for_a_bus_that_is_away_and_says_so(
    world: World, server: MortalBusWorld, processes: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    server.kill()
    processes.append(start("scheduler", tmp_path, server.url, log))
    eventually(lambda: "waits for the bus" in log.read_text(), 30)
    server.restart()
    eventually(lambda: "leads in epoch" in log.read_text(), 30)


def test_a_database_it_cannot_lead_on_stops_the_start_with_a_sentence(
    processes: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    url = "postgresql+nodriver://nobody@localhost:1/none"
    processes.append(start("scheduler", tmp_path, "memory://", log, LLMOS_DB_URL=url))
    assert processes[0].wait(30) == 2
    assert "LLMOS_DB_URL" in log.read_text()
