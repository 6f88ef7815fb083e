"""A node's cache: nothing unverified is served, whoever is killed, and nothing in use is evicted."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

import shared.store.cache
from shared.contracts.artifacts import Manifest, ManifestFile, blob_key, manifest_key
from shared.store.cache import ArtifactCache
from shared.store.local import LocalStore
from shared.store.port import (
    CorruptArtifact,
    InvalidKey,
    ObjectNotFound,
    OnBytes,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from shared.store.staging import read_manifest, stage_folder, staged_file_key
from tests.contract.test_store import small_disk

__all__ = ["small_disk"]

MB = 2**20
NO_LIMIT = 10**12
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["tests.integration.test_store_cache"])


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = LocalStore(folder / "objects")

    def cache(self, limit_bytes: int = NO_LIMIT, max_age_s: float = 10**6) -> ArtifactCache:
        return ArtifactCache(self.store, self.folder / "cache", limit_bytes, max_age_s)

    def version(self, name: str, files: dict[str, bytes]) -> str:
        """Register a version and return its manifest's key."""
        source = self.folder / "sources" / name
        for path, data in files.items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes(data)
        manifest = stage_folder(self.store, f"staging/{name}", source, {})
        for file in manifest.files:
            self.store.copy(staged_file_key(f"staging/{name}", file.path), blob_key(file.sha256))
        key = manifest_key("default", name, 1)
        self.store.put_bytes(key, manifest.model_dump_json().encode())
        return key

    def blob(self, key: str) -> Path:
        """The store's own file of a version's first blob."""
        return self.folder / "objects" / blob_key(read_manifest(self.store, key).files[0].sha256)

    def cached_bytes(self) -> int:
        return sum(path.stat().st_size for path in (self.folder / "cache" / "blobs").iterdir())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_pull_gives_the_files_and_tells_how_far_it_is(world: World) -> None:
    files = {"config.json": b"{}", "deep/er/weights": os.urandom(3 * MB), "empty": b""}
    key = world.version("m", files)
    for _ in range(2):
        moved: list[int] = []
        assert contents(world.cache().pull(key, moved.append)) == files
        assert sum(moved) == sum(map(len, files.values()))


def test_a_staged_checkpoint_is_pulled_the_same_way(world: World) -> None:
    world.version("c", {"optimizer.pt": b"state"})
    assert contents(world.cache().pull_staged("staging/c")) == {"optimizer.pt": b"state"}


def test_equal_files_of_two_versions_lie_there_once(world: World) -> None:
    first, second = (world.version(name, {"base": b"x" * MB, "own": name.encode()}) for name in ("a", "b"))
    cache = world.cache()
    one, two = cache.pull(first), cache.pull(second)
    assert (one / "base").stat().st_ino == (two / "base").stat().st_ino
    assert world.cached_bytes() == MB + 2


def test_a_corrupt_file_is_deleted_and_never_served(world: World) -> None:
    key = world.version("m", {"a": b"right" * MB, "b": b"fine"})
    blob = world.blob(key)
    right = blob.read_bytes()
    blob.write_bytes(b"wrong" * MB)
    for _ in range(2):
        with pytest.raises(CorruptArtifact, match="'a'"):
            world.cache().pull(key)
        assert not list((world.folder / "cache" / "parts").iterdir())
        assert not [path for path in (world.folder / "cache" / "versions").iterdir() if path.name.endswith("0")]
    blob.write_bytes(right)
    assert contents(world.cache().pull(key))["a"] == right


def test_a_truncated_object_is_corrupt(world: World) -> None:
    key = world.version("m", {"a": b"x" * MB})
    os.truncate(world.blob(key), 1000)
    with pytest.raises(CorruptArtifact):
        world.cache().pull(key)


@pytest.mark.parametrize("left", [b"a" * MB, b"z" * MB, b"a" * 9 * MB])
def test_a_part_that_was_left_is_gone_on_with_or_thrown_away(world: World, left: bytes) -> None:
    data = b"a" * 3 * MB
    key = world.version("m", {"a": data})
    cache = world.cache()
    cache.pull(world.version("other", {"x": b""}))
    (world.folder / "cache" / "parts" / world.blob(key).name).write_bytes(left)
    assert contents(cache.pull(key)) == {"a": data}


def test_a_cached_file_that_someone_wrote_into_is_fetched_again(world: World) -> None:
    key = world.version("m", {"a": b"right"})
    folder = world.cache().pull(key)
    (folder / "a").write_bytes(b"wrong")
    assert contents(world.cache().pull(key)) == {"a": b"right"}
    assert world.blob(key).read_bytes() == b"right"


def test_after_a_new_start_of_the_machine_everything_is_hashed_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = world.version("m", {"a": b"right"})
    folder = world.cache().pull(key)
    torn = folder / "a"
    times = torn.stat().st_atime, torn.stat().st_mtime
    torn.write_bytes(b"\0\0\0\0\0")
    os.utime(torn, times)  # as a power cut leaves it: the right size and time, the wrong bytes
    boot = world.folder / "boot-id"
    boot.write_text("another start")
    monkeypatch.setattr("shared.store.cache.BOOT_ID", boot)
    assert contents(world.cache().pull(key)) == {"a": b"right"}


def test_what_was_pulled_serves_while_the_store_is_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    key = world.version("m", {"a": b"1"})
    world.cache().pull(key)

    def away(*_: object) -> bytes:
        raise StoreUnavailable("the store is away")

    monkeypatch.setattr(world.store, "get_bytes", away)
    monkeypatch.setattr(world.store, "read", away)
    assert contents(world.cache().pull(key)) == {"a": b"1"}
    with pytest.raises(StoreUnavailable):
        world.cache().pull(manifest_key("default", "other", 1))


@pytest.mark.parametrize("path", ["../../escaped", "/tmp/escaped", "a/../../b"])
def test_a_manifest_cannot_make_the_cache_write_elsewhere(world: World, path: str) -> None:
    manifest = Manifest(files=[ManifestFile(path=path, size_bytes=1, sha256="0" * 64)])
    world.store.put_bytes("staging/x/manifest.json", manifest.model_dump_json().encode())
    with pytest.raises(CorruptArtifact, match="broken"):
        world.cache().pull_staged("staging/x")


def test_what_is_not_there_is_told(world: World) -> None:
    with pytest.raises(ObjectNotFound):
        world.cache().pull(manifest_key("default", "nothing", 1))
    with pytest.raises(ObjectNotFound):
        world.cache().pull_staged("staging/nothing")


# Eviction.


def test_the_longest_unused_versions_go_when_room_is_needed(world: World) -> None:
    keys = [world.version(f"m{index}", {"a": bytes([index]) * MB}) for index in range(4)]
    cache = world.cache(limit_bytes=3 * MB)
    folders = [cache.pull(key) for key in keys[:3]]
    for folder in folders:
        cache.release(folder)
    cache.release(cache.pull(keys[0]))
    cache.pull(keys[3])
    assert [folder.exists() for folder in folders] == [True, False, True]
    assert world.cached_bytes() == 3 * MB


def test_what_is_in_use_stays_even_over_the_limit(world: World) -> None:
    first, second = (world.version(name, {"a": name.encode() * MB}) for name in ("a", "b"))
    user, other = world.cache(limit_bytes=0), world.cache(limit_bytes=0)
    used = user.pull(first)
    other.release(other.pull(second))
    other.pull(second)
    assert contents(used) == {"a": b"a" * MB}
    user.close()
    other.pull(world.version("c", {"c": b"c"}))
    assert not used.exists()


def test_a_version_pulled_twice_is_in_use_until_it_is_released_twice(world: World) -> None:
    key, other = world.version("m", {"a": b"1"}), world.version("n", {"b": b"2"})
    cache = world.cache(limit_bytes=0)
    folder = cache.pull(key)
    cache.release(cache.pull(key))
    cache.pull(other)
    assert folder.exists()
    cache.release(folder)
    cache.pull(world.version("third", {"c": b"3"}))
    assert not folder.exists()


def test_what_is_unused_for_too_long_goes(world: World) -> None:
    old, new = world.version("old", {"a": b"1"}), world.version("new", {"b": b"2"})
    cache = world.cache(max_age_s=3600)
    folder = cache.pull(old)
    cache.release(folder)
    os.utime(f"{folder}.use", (0, 0))
    (world.folder / "cache" / "parts" / "forgotten").write_bytes(b"half")
    os.utime(world.folder / "cache" / "parts" / "forgotten", (0, 0))
    cache.pull(new)
    assert not folder.exists()
    assert world.cached_bytes() == 1
    assert not list((world.folder / "cache" / "parts").iterdir())


def test_a_full_disk_first_costs_what_is_unused(world: World, small_disk: Path) -> None:
    first, second = (world.version(name, {"a": os.urandom(3 * MB)}) for name in ("a", "b"))
    cache = ArtifactCache(world.store, small_disk, NO_LIMIT, 10**6)
    folder = cache.pull(first)
    with pytest.raises(StoreFull, match="no room"):
        cache.pull(second)
    assert folder.exists()
    cache.release(folder)
    assert contents(cache.pull(second))
    assert not folder.exists()


@pytest.mark.parametrize("step", ["fresh_file", "lock", "locked"])
def test_a_disk_too_full_for_the_first_step_of_a_pull_costs_what_is_unused(
    world: World, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (world.version(name, {"a": name.encode()}) for name in ("a", "b"))
    cache = world.cache()
    folder = cache.pull(first)
    real = getattr(shared.store.cache, step)

    def while_there_is_room(*args: Any, **how: Any) -> Any:
        if folder.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **how)

    monkeypatch.setattr(shared.store.cache, step, while_there_is_room)
    if step != "fresh_file":  # the one thing that a pull can do without
        with pytest.raises(StoreFull, match="no room"):
            cache.pull(second)
        with pytest.raises(StoreFull, match="no room"):
            cache.pull_staged("staging/b")
    cache.release(folder)
    assert contents(cache.pull(second)) == {"a": b"b"}
    assert folder.exists() == (step == "fresh_file")


def test_a_folder_that_cannot_be_used_is_told_as_an_error_of_the_store(world: World) -> None:
    key = world.version("m", {"a": b"1"})
    (world.folder / "cache").write_text("no folder")
    with pytest.raises(StoreError, match="cache folder"):
        world.cache().pull(key)


# Several processes.


def pull_slowly(folder: Path, key: str, begun: Event) -> None:
    """Pull, and stand still once the first bytes have come."""

    def stand_still(_: int) -> None:
        begun.set()
        signal.pause()

    World(folder).cache().pull(key, stand_still)


def pull_and_hold(folder: Path, key: str, pulled: Event) -> None:
    cache = World(folder).cache()
    cache.pull(key)
    pulled.set()
    signal.pause()
    cache.close()


@pytest.fixture
def started() -> Iterator[list[BaseProcess]]:
    processes: list[BaseProcess] = []
    yield processes
    for process in processes:
        process.kill()
        process.join()


def test_a_pull_killed_in_the_middle_is_gone_on_with(world: World, started: list[BaseProcess]) -> None:
    data = os.urandom(5 * MB)
    key = world.version("m", {"a": data})
    begun = forks.Event()
    process = forks.Process(target=pull_slowly, args=(world.folder, key, begun))
    started.append(process)
    process.start()
    assert begun.wait(30)
    process.kill()
    process.join()
    assert not list((world.folder / "cache" / "blobs").iterdir())
    assert contents(world.cache().pull(key)) == {"a": data}


def test_processes_that_pull_the_same_version_do_not_harm_each_other(world: World, started: list[BaseProcess]) -> None:
    files = {str(index): os.urandom(MB) for index in range(5)}
    key = world.version("m", files)
    events = [forks.Event() for _ in range(4)]
    for event in events:
        started.append(forks.Process(target=pull_and_hold, args=(world.folder, key, event)))
        started[-1].start()
    assert all(event.wait(30) for event in events)
    assert contents(world.cache().pull(key)) == files
    assert world.cached_bytes() == 5 * MB


def test_what_another_process_uses_stays_until_that_process_ends(world: World, started: list[BaseProcess]) -> None:
    used = {"a": b"1"}
    key = world.version("m", used)
    pulled = forks.Event()
    started.append(forks.Process(target=pull_and_hold, args=(world.folder, key, pulled)))
    started[0].start()
    assert pulled.wait(30)
    cache = world.cache(limit_bytes=0)

    def is_there_after_pulling(name: str) -> bool:
        cache.pull(world.version(name, {"b": name.encode()}))
        versions = (world.folder / "cache" / "versions").iterdir()
        return used in [contents(path) for path in versions if path.is_dir()]

    assert is_there_after_pulling("second")
    started[0].kill()
    started[0].join()
    assert not is_there_after_pulling("third")


# Staging.


def test_a_try_again_uploads_only_what_is_not_up_yet(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, put, sent = tmp_path / "source", type(world.store).put_file, []
    source.mkdir()
    for name in "abc":
        (source / name).write_text(name)

    def away_at_first_for_b(store: LocalStore, key: str, path: Path, *rest: OnBytes | None) -> None:
        sent.append(path.name)
        if sent == ["a", "b"]:
            raise StoreUnavailable("away")
        put(store, key, path, *rest)

    monkeypatch.setattr(type(world.store), "put_file", away_at_first_for_b)
    staged: dict[str, ManifestFile] = {}
    told: list[int] = []
    with pytest.raises(StoreUnavailable):
        stage_folder(world.store, "staging/x", source, {}, None, staged)
    manifest = stage_folder(world.store, "staging/x", source, {}, told.append, staged)
    assert sent == ["a", "b", "b", "c"]
    assert sum(told) == 3
    assert read_manifest(world.store, "staging/x/manifest.json") == manifest
    assert [file.path for file in manifest.files] == ["a", "b", "c"]


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/etc/passwd"), os.mkfifo])
def test_links_and_pipes_are_not_staged(world: World, make: object, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "fine").write_text("fine")
    make(source / "evil")  # type: ignore[operator]
    with pytest.raises(InvalidKey, match="evil"):
        stage_folder(world.store, "staging/x", source, {})
    assert world.store.stat("staging/x/manifest.json") is None
