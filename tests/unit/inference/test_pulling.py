"""Versions are pulled with progress, through absences of the store, and given up when nobody wants them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.inference import pulling
from services.inference.pulling import Puller, PullFailed
from shared.contracts.artifacts import ArtifactKind, ArtifactPin, blob_key
from shared.store.cache import ArtifactCache
from shared.store.local import LocalStore
from shared.store.port import ObjectStore, StoreUnavailable
from tests.integration.inference_node import register
from tests.waiting import aeventually

SIZE = 8 << 20


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "objects")


@pytest.fixture
def pin(tmp_path: Path, store: LocalStore) -> ArtifactPin:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(os.urandom(SIZE))
    return register(store, "m", 1, folder, ArtifactKind.model)


def puller(store: ObjectStore, tmp_path: Path) -> Puller:
    return Puller(store, ArtifactCache(store, tmp_path / "cache", 1 << 30, 3600))


def nothing(_: object) -> None: ...


async def test_a_pull_tells_its_percent_and_gives_the_files(
    store: LocalStore, pin: ArtifactPin, tmp_path: Path
) -> None:
    percents: list[float] = []
    folder = await puller(store, tmp_path).pull(pin, SIZE, percents.append, nothing)
    assert (folder / "model.safetensors").stat().st_size == SIZE
    await aeventually(lambda: percents)
    assert percents == sorted(percents)
    assert max(percents) <= 99


async def test_a_version_that_is_not_there_is_final_and_a_broken_one_is_not(
    store: LocalStore, pin: ArtifactPin, tmp_path: Path
) -> None:
    ghost = pin.changed(name="ghost", manifest_key="manifests/default/ghost/1.json")
    with pytest.raises(PullFailed, match="ghost@1") as missing:
        await puller(store, tmp_path).pull(ghost, 1, nothing, nothing)
    assert missing.value.final
    manifest = await puller(store, tmp_path).manifest(pin, nothing)
    store.put_bytes(blob_key(manifest.files[0].sha256), b"other bytes")
    with pytest.raises(PullFailed, match="m@1") as broken:
        await puller(store, tmp_path).pull(pin, SIZE, nothing, nothing)
    assert not broken.value.final


async def test_while_the_store_is_away_it_waits_and_says_so(
    store: LocalStore, pin: ArtifactPin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulling, "FIRST_PAUSE_S", 0.01)
    troubles: list[str] = []
    shy = AwayAtFirst(tmp_path / "objects", times=2)
    await puller(shy, tmp_path).pull(pin, SIZE, nothing, troubles.append)
    assert [bool(trouble) for trouble in troubles] == [True, True, False]
    assert "object store" in troubles[0]


async def test_a_pull_that_nobody_wants_any_more_stops(pin: ArtifactPin, tmp_path: Path) -> None:
    slow = Gated(tmp_path / "objects")
    pull = asyncio.create_task(puller(slow, tmp_path).pull(pin, SIZE, nothing, nothing))
    await aeventually(slow.begun.is_set)
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    slow.go.set()
    await aeventually(slow.given_up.is_set)
    assert not list((tmp_path / "cache" / "versions").glob("*/model.safetensors"))


async def test_a_pull_given_up_in_its_last_instant_holds_nothing(store: LocalStore, pin: ArtifactPin) -> None:
    cache = InstantCache()
    pull = asyncio.create_task(Puller(store, cache).pull(pin, SIZE, nothing, nothing))
    await asyncio.sleep(0)
    assert cache.pulled.wait(10)  # on its thread, while this loop has not heard of it yet
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    await aeventually(lambda: cache.released == [Path("/folder")])


class InstantCache(ArtifactCache):
    """Pulls nothing at all, and notes what it gives and gets back."""

    def __init__(self) -> None:
        self.pulled, self.released = threading.Event(), list[Path]()

    def pull(self, manifest_key: str, on_bytes: Callable[[int], None] | None = None) -> Path:
        self.pulled.set()
        return Path("/folder")

    def release(self, folder: Path) -> None:
        self.released.append(folder)


class AwayAtFirst(LocalStore):
    def __init__(self, folder: Path, times: int) -> None:
        super().__init__(folder)
        self.times = times

    def get_bytes(self, key: str) -> bytes:
        self.times -= 1
        if self.times >= 0:
            raise StoreUnavailable("the store does not answer")
        return super().get_bytes(key)


class Gated(LocalStore):
    """Moves no byte before `go` is set, and notes whether the reader stopped early."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.begun, self.go, self.given_up = threading.Event(), threading.Event(), threading.Event()

    def read(self, key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        self.begun.set()
        self.go.wait(10)
        try:
            yield from super().read(key, offset, length)
        finally:
            self.given_up.set()
