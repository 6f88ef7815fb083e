"""kill -9 of a registry between any two steps, then the command again: exactly one version with the same content."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path

from shared.bus.memory import MemoryBus
from shared.contracts.artifacts import ArtifactKind, CommandDone, PublishArtifact, SetAlias
from shared.contracts.message import Message
from shared.store.cache import ArtifactCache
from shared.store.local import LocalStore
from tests.databases import NewDatabase
from tests.faults.mortal_registry import handle
from tests.integration.registry_world import Client, start_registry, tensors

FILES = {"model.safetensors": tensors(b"weights" * 1000), "config.json": b"{}"}
MOST_STEPS = 200

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["tests.faults.mortal_registry"])


def killed_at(step: int, folder: Path, db_url: str, command: Message) -> bool:
    """Handle the command in a process of its own. Whether it was killed at that step."""
    process = forks.Process(target=handle, args=(folder, db_url, command.encode(), step))
    process.start()
    process.join(60)
    assert process.exitcode in {0, -signal.SIGKILL}
    return process.exitcode != 0


def new_registry(folder: Path) -> tuple[Path, LocalStore]:
    folder.mkdir()
    return folder, LocalStore(folder / "objects")


def check_one_version(folder: Path, store: LocalStore, db_url: str, command: PublishArtifact) -> None:
    """Start again, deliver the command again, and look at everything that is left."""
    bus = MemoryBus()
    service = start_registry(folder, store, bus, db_url)
    client = Client(store, bus, folder)
    done = client.answer(client.send(command))
    assert isinstance(done, CommandDone)
    assert done.artifact
    assert done.artifact.ref == "m@1"
    client.sees(lambda: set(client.versions("m")) == {1} and client.aliases("m") == {"latest": 1, "production": 1})
    pulled = ArtifactCache(store, folder / "cache", 10**9, 10**6).pull(done.artifact.manifest_key)
    assert {path.name: path.read_bytes() for path in pulled.iterdir()} == FILES
    assert [found.key for found in store.list("manifests/")] == [done.artifact.manifest_key]
    assert len(list(store.list("blobs/"))) == 2
    service.stop()


def test_a_publish_killed_at_any_step_ends_as_one_version(tmp_path: Path, new_database: NewDatabase) -> None:
    step = 0
    while step < MOST_STEPS:
        step += 1
        folder, store = new_registry(tmp_path / str(step))
        db_url = new_database("registry")
        prefix = Client(store, MemoryBus(), folder).stage(FILES)
        command = PublishArtifact(
            name="m", kind=ArtifactKind.model, staged_prefix=prefix, publication_id="p", aliases=["production"]
        )
        was_killed = killed_at(step, folder, db_url, command)
        check_one_version(folder, store, db_url, command)
        if not was_killed:
            break
    assert 15 < step < MOST_STEPS


def test_an_alias_killed_at_any_step_moves_once(tmp_path: Path, new_database: NewDatabase) -> None:
    step, was_killed = 0, True
    while was_killed:
        step += 1
        folder, store = new_registry(tmp_path / str(step))
        db_url = new_database("registry")
        bus = MemoryBus()
        service = start_registry(folder, store, bus, db_url)
        client = Client(store, bus, folder)
        client.published("m", {"a": b"1"})
        service.stop()
        command = SetAlias(name="m", alias="production", version=1)
        was_killed = killed_at(step, folder, db_url, command)
        bus = MemoryBus()
        service = start_registry(folder, store, bus, db_url)
        client = Client(store, bus, folder)
        assert isinstance(client.answer(client.send(command)), CommandDone)
        client.sees(lambda client=client: client.aliases("m") == {"latest": 1, "production": 1})  # type: ignore[misc]
        service.stop()
    assert step > 2
