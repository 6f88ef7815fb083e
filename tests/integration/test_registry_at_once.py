"""Reading a huge publication whole holds up nothing but its own artifact."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.registry.inbox import PUBLISHES
from services.registry.main import GROUP, Service
from shared.bus.port import Bus
from shared.contracts.artifacts import ArtifactKind, CommandDone, CommandRejected, PublishArtifact, SetAlias
from shared.contracts.topics import REGISTRY_COMMANDS
from shared.store.port import ObjectStore, StoreUnavailable
from shared.store.staging import read_manifest
from tests.ground import Ground
from tests.integration.registry_world import Client, start_registry
from tests.waiting import eventually

SLOW = "huge"


class SlowStore:
    """Reading a file named `huge` takes until `go_on`, or fails while the store is `away`. All else is the store's."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.go_on = threading.Event()
        self.away = False
        self.reading = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        if key.endswith(SLOW):
            if self.away:
                raise StoreUnavailable("away")
            self.reading += 1
            self.go_on.wait(60)
        return self._store.read(key, offset, length)


@pytest.fixture
def store(ground: Ground) -> Any:
    return SlowStore(ground.store())


@pytest.fixture
def bus(ground: Ground) -> Bus:
    return ground.bus()


@pytest.fixture
def db_url(ground: Ground) -> str:
    return ground.new_database("registry")


@pytest.fixture
def service(store: Any, ground: Ground, tmp_path: Path, db_url: str) -> Iterator[Service]:
    service = start_registry(tmp_path, store, ground.bus(), db_url)
    yield service
    store.go_on.set()
    service.stop()


@pytest.fixture
def client(service: Service, store: Any, bus: Bus, tmp_path: Path) -> Client:
    return Client(store, bus, tmp_path)


def send_huge(client: Client, name: str) -> str:
    prefix = client.stage({SLOW: name.encode()})
    return client.send(
        PublishArtifact(name=name, kind=ArtifactKind.report, staged_prefix=prefix, publication_id=f"p-{name}")
    )


def test_an_alias_of_another_artifact_moves_while_as_many_as_may_are_published(client: Client, store: Any) -> None:
    client.published("small", {"a": b"1"})
    huge = [send_huge(client, f"m{number}") for number in range(PUBLISHES + 1)]
    eventually(lambda: store.reading == PUBLISHES)
    assert isinstance(client.answer(client.send(SetAlias(name="small", alias="production", version=1))), CommandDone)
    assert not client.answers.keys() & set(huge)
    store.go_on.set()
    assert all(isinstance(client.answer(command), CommandDone) for command in huge)


def test_commands_of_one_artifact_keep_their_order(client: Client, store: Any) -> None:
    first = send_huge(client, "m")
    alias = client.send(SetAlias(name="m", alias="production", version=1))
    eventually(lambda: store.reading == 1)
    client.published("other", {"a": b"1"})
    assert not client.answers.keys() & {first, alias}
    store.go_on.set()
    assert isinstance(client.answer(alias), CommandDone), "the version was there before"


def test_a_command_that_the_bus_has_forgotten_is_handled_after_a_restart(
    client: Client, service: Service, store: Any, bus: Bus, ground: Ground, db_url: str, tmp_path: Path
) -> None:
    store.away = True
    send_huge(client, "m")
    client.published("other", {"a": b"1"})
    eventually(lambda: bus.lag(REGISTRY_COMMANDS, GROUP) == 0)
    service.stop()
    store.away = False
    store.go_on.set()
    ground.wipe_bus()
    again = start_registry(tmp_path, store, ground.bus(), db_url)
    newcomer = Client(store, ground.bus(), tmp_path)
    newcomer.sees(lambda: 1 in newcomer.versions("m"), "the version")
    again.stop()


def test_one_publication_id_for_two_names_at_once_overwrites_no_version(client: Client, store: Any) -> None:
    client.published("b", {"a": b"1"})
    first = send_huge(client, "a")
    eventually(lambda: store.reading == 1)
    prefix = client.stage({SLOW: b"other"})
    thief = PublishArtifact(name="b", kind=ArtifactKind.report, staged_prefix=prefix, publication_id="p-a")
    stolen = client.send(thief)
    eventually(lambda: store.reading == 2)
    store.go_on.set()
    ends = {type(client.answer(command)) for command in (first, stolen)}
    assert ends == {CommandDone, CommandRejected}
    client.sees(lambda: 1 in client.versions("b"))
    mine = client.versions("b")[1]
    assert read_manifest(store, mine.manifest_key) == mine.manifest
