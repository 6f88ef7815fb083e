"""`python -m services.registry` as it is run: killed while it works, stopped in order, started before its servers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from shared.contracts.artifacts import ArtifactKind, CommandDone, PublishArtifact
from shared.store.local import LocalStore
from tests.contract.bus_worlds import MortalBusWorld, kafka_world, valkey_world
from tests.integration.registry_world import Answer, Client
from tests.service_process import start
from tests.waiting import eventually

BUSES = {"valkey": valkey_world, "kafka": kafka_world}
"""Kafka is the one that all tests share, so only Valkey is killed."""


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[MortalBusWorld]:
    with BUSES[getattr(request, "param", "valkey")]() as server:
        yield server


class Registry:
    """The process."""

    def __init__(self, folder: Path, bus_url: str, **settings: str) -> None:
        self.log = folder / f"registry-{uuid4().hex}.log"
        self.process = start("registry", folder / "home", bus_url, self.log, **settings)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture
def client(server: MortalBusWorld, tmp_path: Path) -> Iterator[Client]:
    bus = server.connect()
    yield Client(LocalStore(tmp_path / "home" / "objects"), bus, tmp_path)
    bus.close()


@pytest.mark.parametrize("server", BUSES, indirect=True)
def test_a_registry_killed_while_it_publishes_loses_and_doubles_nothing(
    server: MortalBusWorld, client: Client, tmp_path: Path
) -> None:
    names = [f"m{number}-{uuid4().hex[:8]}" for number in range(3)]  # others may have left theirs on the bus
    commands = [
        PublishArtifact(
            name=names[index % 3],
            kind=ArtifactKind.report,
            staged_prefix=client.stage({"a": str(index).encode() * 1000}),
            publication_id=uuid4().hex,
        )
        for index in range(30)
    ]
    sent = [client.send(command) for command in commands]

    def answers() -> list[Answer]:
        return [client.answers[command_id][0] for command_id in sent if command_id in client.answers]

    for answered in (3, 12):
        registry = Registry(tmp_path, server.url)
        eventually(lambda answered=answered: len(answers()) >= answered, 30, "some answers")  # type: ignore[misc]
        registry.kill()
    registry = Registry(tmp_path, server.url)
    eventually(lambda: '"started"' in registry.log.read_text(), 30, "the registry's start")
    eventually(lambda: len(answers()) == 30, 30, "all answers")
    pins = {answer.artifact.ref for answer in answers() if isinstance(answer, CommandDone) and answer.artifact}
    assert pins == {f"{name}@{version}" for name in names for version in range(1, 11)}
    client.sees(lambda: all(set(client.versions(name)) == set(range(1, 11)) for name in names))
    assert registry.stop() == 0


def test_it_waits_for_a_bus_that_is_not_there_yet(server: MortalBusWorld, client: Client, tmp_path: Path) -> None:
    server.kill()
    registry = Registry(tmp_path, server.url)
    eventually(lambda: "waits" in registry.log.read_text(), 30, "a log line that says what it waits for")
    server.restart()
    client.published("m", {"a": b"1"})
    assert registry.stop() == 0


def test_it_stops_in_order_while_it_waits(tmp_path: Path) -> None:
    registry = Registry(tmp_path, f"valkey+unix://{tmp_path / 'nothing'}")
    eventually(lambda: "waits" in registry.log.read_text(), 30, "a log line that says what it waits for")
    assert registry.stop() == 0


def test_a_wrong_setting_stops_the_start_with_a_sentence(tmp_path: Path) -> None:
    registry = Registry(tmp_path, "memory://", LLMOS_STORE_URL="ftp://x")
    assert registry.process.wait(30) == 2
    assert "LLMOS_STORE_URL" in registry.log.read_text()
