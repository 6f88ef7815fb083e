"""What every object store promises, over the local folder and over a real S3 server."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
import structlog
from minio.datatypes import Part
from urllib3.exceptions import ProtocolError

from shared.settings import Settings, SettingsError
from shared.store import connect, s3_http
from shared.store.local import LocalStore
from shared.store.port import InvalidKey, ObjectNotFound, ObjectStore, StoreFull, StoreUnavailable, StoreUninitialized
from shared.store.s3 import S3Store
from shared.store.s3_client import MultipartClient
from tests.s3_server import S3_SERVERS, S3Server, minio_server

MB = 2**20


@pytest.fixture(scope="module", params=S3_SERVERS)
def s3(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3_SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as server:
        yield server


def bucket_of(server: S3Server, bucket: str | None = None, secret: str | None = None) -> S3Store:
    return S3Store(server.endpoint, bucket or f"b{uuid4().hex[:12]}", server.access_key, secret or server.secret_key)


def made(server: S3Server) -> S3Store:
    """One whose bucket is there."""
    store = bucket_of(server)
    store.prepare()
    return store


@pytest.fixture(scope="module", params=["local", *S3_SERVERS])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], ObjectStore]]:
    """Makes empty stores of one kind."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "local":
        yield lambda: LocalStore(folder / uuid4().hex)
        return
    with S3_SERVERS[request.param](folder) as server:
        yield lambda: bucket_of(server)


@pytest.fixture
def store(world: Callable[[], ObjectStore]) -> ObjectStore:
    store = world()
    store.prepare()
    return store


def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [found.key for found in store.list(prefix)]


def whole(chunks: Iterator[bytes]) -> bytes:
    return b"".join(chunks)


def noise(size_bytes: int) -> bytes:
    return os.urandom(MB) * (size_bytes // MB) + os.urandom(size_bytes % MB)


def write_half(store: ObjectStore, key: str, data: bytes, error: Exception) -> None:
    """Write as a client does that fails before the end."""
    with store.writer(key) as file:
        for start in range(0, len(data), MB):
            file.write(data[start : start + MB])
        raise error


def test_bytes_come_back(store: ObjectStore) -> None:
    store.put_bytes("a/b", b"one")
    store.put_bytes("a/b", b"two!")
    assert store.get_bytes("a/b") == b"two!"
    assert store.stat("a/b") is not None
    assert [(found.key, found.size_bytes) for found in store.list("a/")] == [("a/b", 4)]


def test_empty_objects_are_objects(store: ObjectStore, tmp_path: Path) -> None:
    store.put_bytes("empty", b"")
    with store.writer("also"):
        pass
    assert whole(store.read("empty")) == whole(store.read("also")) == b""
    store.get_file("empty", tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == b""


def test_what_is_not_there_is_told_before_the_first_byte(store: ObjectStore, tmp_path: Path) -> None:
    store.put_bytes("there/is", b"1")
    assert store.stat("nothing") is None
    assert store.stat("there") is None
    for ask in (
        lambda: store.get_bytes("nothing"),
        lambda: store.read("nothing"),
        lambda: store.get_file("nothing", tmp_path / "x"),
        lambda: store.copy("nothing", "x"),
    ):
        with pytest.raises(ObjectNotFound):
            ask()
    store.delete("nothing")
    store.delete("there")
    assert keys(store) == ["there/is"]
    assert not list(tmp_path.glob("*x*"))


def test_a_big_file_comes_back_in_parts(store: ObjectStore, tmp_path: Path) -> None:
    data = noise(20 * MB + 12345)
    (tmp_path / "big").write_bytes(data)
    up: list[int] = []
    down: list[int] = []
    store.put_file("big", tmp_path / "big", up.append)
    assert whole(store.read("big")) == data
    assert whole(store.read("big", 9 * MB + 1, 3 * MB)) == data[9 * MB + 1 : 12 * MB + 1]
    assert whole(store.read("big", len(data) - 5)) == data[-5:]
    assert whole(store.read("big", len(data))) == whole(store.read("big", 5, 0)) == b""
    store.get_file("big", tmp_path / "again", down.append)
    assert (tmp_path / "again").read_bytes() == data
    assert sum(up) == sum(down) == len(data)


@pytest.mark.parametrize("size_bytes", [8 * MB, 8 * MB + 1, 16 * MB])
def test_sizes_at_the_edge_of_a_part_come_back(store: ObjectStore, size_bytes: int) -> None:
    data = noise(size_bytes)
    with store.writer("edge") as file:
        for start in range(0, size_bytes, 3 * MB):
            file.write(data[start : start + 3 * MB])
    assert whole(store.read("edge")) == data


def test_an_object_appears_when_the_block_ends(store: ObjectStore) -> None:
    with store.writer("slow") as file:
        file.write(noise(10 * MB))
        assert store.stat("slow") is None
        assert keys(store) == []
    assert keys(store) == ["slow"]


def test_a_writer_that_raises_leaves_nothing_and_spoils_nothing(store: ObjectStore) -> None:
    store.put_bytes("kept", b"old")
    for key in ("kept", "new"):
        with pytest.raises(RuntimeError, match="client left"):
            write_half(store, key, noise(20 * MB), RuntimeError("client left"))
    assert keys(store) == ["kept"]
    assert store.get_bytes("kept") == b"old"


def test_an_error_of_the_block_is_not_blamed_on_the_store(store: ObjectStore) -> None:
    with pytest.raises(ConnectionResetError):
        write_half(store, "upload", b"half", ConnectionResetError("the client is gone"))
    assert store.stat("upload") is None


def test_concurrent_writers_of_one_key_leave_one_whole_object(store: ObjectStore) -> None:
    contents = [bytes([65 + index]) * (2 * MB) for index in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda data: store.put_bytes("one", data), contents))
    assert store.get_bytes("one") in contents


def test_a_get_goes_on_where_it_was_cut_off(store: ObjectStore, tmp_path: Path) -> None:
    data = noise(30 * MB)
    (tmp_path / "source").write_bytes(data)
    store.put_file("big", tmp_path / "source")

    class Cut(Exception):
        pass

    first: list[int] = []

    def cut(size_bytes: int) -> None:
        first.append(size_bytes)
        if sum(first) > 11 * MB:
            raise Cut

    target = tmp_path / "pulled" / "big"
    with pytest.raises(Cut):
        store.get_file("big", target, cut)
    assert not target.exists()
    (part,) = target.parent.iterdir()
    there = part.stat().st_size
    assert there > 10 * MB
    then: list[int] = []
    store.get_file("big", target, then.append)
    assert target.read_bytes() == data
    assert then[0] == there
    assert list(target.parent.iterdir()) == [target]


def test_a_cut_off_get_of_what_was_replaced_starts_anew(store: ObjectStore, tmp_path: Path) -> None:
    def cut(_: int) -> None:
        raise InterruptedError

    store.put_bytes("key", b"a" * 3 * MB)
    with pytest.raises((InterruptedError, StoreUnavailable)):
        store.get_file("key", tmp_path / "to" / "file", cut)
    store.put_bytes("key", b"b" * 3 * MB)
    store.get_file("key", tmp_path / "to" / "file")
    assert (tmp_path / "to" / "file").read_bytes() == b"b" * 3 * MB
    assert len(list((tmp_path / "to").iterdir())) == 1


def test_copies_are_independent_of_their_source(store: ObjectStore) -> None:
    store.put_bytes("from", b"first")
    store.copy("from", "to/here")
    store.copy("from", "to/here")
    store.put_bytes("from", b"second")
    assert store.get_bytes("to/here") == b"first"
    store.delete("from")
    assert store.get_bytes("to/here") == b"first"


def test_listing_shows_what_is_under_a_prefix(store: ObjectStore) -> None:
    for key in ("a/2", "a/1", "a/b/c", "ab/1", "a.b", "z"):
        store.put_bytes(key, b"x")
    assert sorted(keys(store)) == ["a.b", "a/1", "a/2", "a/b/c", "ab/1", "z"]
    assert sorted(keys(store, "a/")) == ["a/1", "a/2", "a/b/c"]
    assert keys(store, "nothing/") == []
    with pytest.raises(InvalidKey):
        keys(store, "a")


def test_names_that_people_give_files_are_keys(store: ObjectStore) -> None:
    names = ["ä ö/ß.txt", "a+b & c=d?.json", "100%.md", ".hidden", "日本語/データ"]
    for name in names:
        store.put_bytes(f"files/{name}", name.encode())
    assert sorted(keys(store, "files/")) == sorted(f"files/{name}" for name in names)
    for name in names:
        store.copy(f"files/{name}", f"copies/{name}")
        assert store.get_bytes(f"copies/{name}") == name.encode()


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../up", "a/../../b", "a//b", "a/", "./a", "a\\b", "a\0b", "x" * 300]
)
def test_keys_that_climb_or_break_are_refused(store: ObjectStore, key: str, tmp_path: Path) -> None:
    store.put_bytes("fine", b"x")
    for use in (
        lambda: store.put_bytes(key, b"x"),
        lambda: store.get_bytes(key),
        lambda: store.read(key),
        lambda: store.stat(key),
        lambda: store.delete(key),
        lambda: store.copy("fine", key),
        lambda: store.copy(key, "fine"),
        lambda: store.get_file(key, tmp_path / "x"),
    ):
        with pytest.raises(InvalidKey):
            use()


def test_a_store_that_can_be_used_answers_ping(store: ObjectStore) -> None:
    store.ping()
    assert keys(store) == []


# The local folder alone.


def test_what_is_prepared_once_stays_as_it_is(world: Callable[[], ObjectStore]) -> None:
    store = world()
    first, again = store.prepare(), store.prepare()
    assert bool(first) == isinstance(store, S3Store)
    assert not again
    store.put_bytes("a", b"1")


def test_a_link_gives_the_object_to_whoever_has_it_under_the_name_it_shall_have(s3: S3Server) -> None:
    store = S3Store(s3.endpoint, "links", s3.access_key, s3.secret_key, public_url=f"http://{s3.endpoint}")
    store.prepare()
    store.put_bytes("blobs/a", b"0123456789")
    url = store.link("blobs/a", 'attachment; filename="weights.bin"')
    assert url is not None
    answer = httpx.get(url, headers={"Range": "bytes=2-4"})
    assert (answer.status_code, answer.content) == (206, b"234")
    assert answer.headers["content-disposition"] == 'attachment; filename="weights.bin"'
    assert httpx.get(url.replace("blobs/a", "blobs/b")).status_code in (403, 404)
    assert bucket_of(s3).link("blobs/a", "attachment") is None


def test_a_link_is_signed_for_the_region_that_the_bucket_is_in(tmp_path: Path) -> None:
    with minio_server(tmp_path, region="eu-central-7") as server:
        outside = f"http://localhost:{server.endpoint.rpartition(':')[2]}"
        store = S3Store(server.endpoint, "links", server.access_key, server.secret_key, public_url=outside)
        store.prepare()
        store.put_bytes("blobs/a", b"0123456789")
        later = S3Store(server.endpoint, "links", server.access_key, server.secret_key, public_url=outside)
        for each in (store, later):
            url = each.link("blobs/a", "attachment")
            assert url is not None
            assert url.startswith(f"{outside}/links/blobs/a?")
            answer = httpx.get(url)
            assert (answer.status_code, answer.content) == (200, b"0123456789"), answer.text


def test_a_link_is_signed_by_a_name_that_is_not_reachable_from_here(s3: S3Server) -> None:
    outside = "https://store.example.invalid"
    store = S3Store(s3.endpoint, "outside", s3.access_key, s3.secret_key, public_url=outside)
    store.prepare()
    assert (store.link("blobs/a", "attachment") or "").startswith(f"{outside}/outside/blobs/a?")


def test_local_copies_share_the_bytes(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put_bytes("from", b"x" * MB)
    store.copy("from", "to")
    assert (tmp_path / "from").stat().st_ino == (tmp_path / "to").stat().st_ino


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    root = tmp_path / "objects"
    store = LocalStore(root)
    store.put_bytes("a", b"x")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "folder").symlink_to(tmp_path)
    for key in ("link", "folder/secret"):
        with pytest.raises(InvalidKey):
            store.get_bytes(key)
        with pytest.raises(InvalidKey):
            store.put_bytes(key, b"overwritten")
    assert keys(store) == ["a"]
    assert (tmp_path / "secret").read_text() == "secret"


def test_a_key_below_an_object_is_refused_in_a_sentence(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put_bytes("a", b"x")
    with pytest.raises(InvalidKey, match="in the way"):
        store.put_bytes("a/b", b"x")


def test_what_killed_writers_left_is_swept_once_it_is_old(tmp_path: Path) -> None:
    (tmp_path / ".tmp").mkdir()
    for name, age_s in (("old", 2 * 86400), ("young", 60)):
        leftover = tmp_path / ".tmp" / name
        leftover.write_bytes(b"half")
        os.utime(leftover, (leftover.stat().st_atime, leftover.stat().st_mtime - age_s))
    store = LocalStore(tmp_path)
    store.put_bytes("a", b"x")
    assert [path.name for path in (tmp_path / ".tmp").iterdir()] == ["young"]
    assert keys(store) == ["a"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB. Where mounting is not allowed, a limit on the size of files stands in for it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True)
    if mounted.returncode == 0:
        yield folder
        subprocess.run(["umount", folder], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * MB, before[1]))
    yield folder
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_spoils_nothing(small_disk: Path, tmp_path: Path) -> None:
    store = LocalStore(small_disk)
    store.put_bytes("kept", b"old")
    with pytest.raises(StoreFull, match="no room"):
        store.put_bytes("kept", noise(5 * MB))
    with pytest.raises(StoreFull, match="no room"):
        write_half(store, "stream", noise(6 * MB), AssertionError("it cannot have fitted"))
    assert store.get_bytes("kept") == b"old"
    assert keys(store) == ["kept"]
    store.put_bytes("small", b"fits")


# S3 alone.


def test_a_copy_larger_than_one_request_is_composed(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.store.s3.COPY_PART_BYTES", 6 * MB)
    store = made(s3)
    data = noise(20 * MB)
    store.put_bytes("from", data)
    store.copy("from", "to")
    assert whole(store.read("to")) == data


def test_wrong_credentials_are_told_in_a_sentence(s3: S3Server) -> None:
    with pytest.raises(StoreUnavailable, match="refuses"):
        bucket_of(s3, secret="wrong-secret").ping()


def test_a_bucket_that_nobody_made_is_told_and_not_made(s3: S3Server) -> None:
    bucket = f"b{uuid4().hex[:12]}"
    store = bucket_of(s3, bucket)
    for use in (store.ping, lambda: store.put_bytes("a", b"1"), lambda: store.stat("a"), lambda: list(store.list(""))):
        with pytest.raises(StoreUninitialized, match="llmos admin init"):
            use()
    store.prepare()
    store.put_bytes("a", b"1")
    assert keys(bucket_of(s3, bucket)) == ["a"]


def test_a_server_that_knows_no_rule_for_uploads_that_were_cut_off_is_nothing_to_warn_of(s3: S3Server) -> None:
    with structlog.testing.capture_logs() as said:
        made(s3).prepare()
    assert said == []


def test_a_server_that_is_away_is_told_within_seconds() -> None:
    with pytest.raises(StoreUnavailable, match="does not answer"):
        S3Store("127.0.0.1:1", "bucket", "key", "secret").ping()


@pytest.fixture
def frozen(s3: S3Server) -> Iterator[Callable[[], None]]:
    """Makes the server keep its connections and say nothing, as a host that hangs."""
    yield lambda: os.kill(s3.pid, signal.SIGSTOP)
    os.kill(s3.pid, signal.SIGCONT)


@pytest.mark.parametrize("ask", ["ping", "put", "get", "stat"])
def test_a_server_that_hangs_is_told_within_seconds(
    s3: S3Server, frozen: Callable[[], None], ask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_http, "QUIET_S", 0.5)
    store = made(s3)
    store.put_bytes("key", b"a")
    asks = {
        "ping": store.ping,
        "put": lambda: store.put_bytes("key", b"b"),
        "get": lambda: store.get_bytes("key"),
        "stat": lambda: store.stat("key"),
    }
    frozen()
    with ThreadPoolExecutor(1) as pool, pytest.raises(StoreUnavailable, match="does not answer"):
        pool.submit(asks[ask]).result(30)


def test_a_download_that_stalls_breaks_off(
    s3: S3Server, frozen: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = made(s3)
    store.put_bytes("key", b"a" * 60 * MB)
    monkeypatch.setattr(s3_http, "QUIET_S", 0.5)
    chunks = store.read("key")
    next(chunks)
    frozen()
    with ThreadPoolExecutor(1) as pool, pytest.raises(StoreUnavailable, match="does not answer"):
        pool.submit(list, chunks).result(30)


@pytest.mark.parametrize(
    ("method", "query", "headers", "size_bytes"),
    [
        ("POST", "?uploadId=a", {}, 1000),
        ("PUT", "", {"X-Amz-Copy-Source": "b/k"}, 0),
        ("PUT", "?partNumber=1&uploadId=a", {}, 64 * MB),
    ],
    ids=["complete", "copy", "large part"],
)
def test_a_server_has_time_for_what_is_large(method: str, query: str, headers: dict[str, str], size_bytes: int) -> None:
    assert s3_http.quiet_s(method, f"http://s3/b/k{query}", headers, size_bytes) > 60
    assert s3_http.quiet_s(method, "http://s3/b/k?uploads=", {}, 0) <= 10


def test_two_processes_may_make_the_bucket(s3: S3Server) -> None:
    stores = [bucket_of(s3, "shared-bucket") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda store: store.prepare(), stores))
    assert keys(stores[0]) == []


def test_a_put_goes_on_where_the_store_cut_it_off(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, data, broken, sent = made(s3), noise(39 * MB), {3}, []
    upload = MultipartClient.upload

    def cut(client: MultipartClient, bucket: str, key: str, part: bytes, upload_id: str, number: int) -> Part:
        if number in broken:
            raise ProtocolError("the server hung up")
        sent.append(number)
        return upload(client, bucket, key, part, upload_id, number)

    monkeypatch.setattr(MultipartClient, "upload", cut)
    (tmp_path / "file").write_bytes(data)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            store.put_file("big", tmp_path / "file")
    assert store.stat("big") is None
    assert sorted(sent) == sorted(set(sent))
    broken.clear()
    before, told = list(sent), []
    store.put_file("big", tmp_path / "file", told.append)
    assert sorted(sent) == [1, 2, 3, 4, 5]
    assert sent[: len(before)] == before
    assert sum(told) == len(data)
    assert store.get_bytes("big") == data


def test_a_put_that_goes_on_sends_what_has_changed_and_begins_anew_where_nothing_is_left(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, data = made(s3), noise(20 * MB)

    def hang_up(*_: object) -> None:
        raise ProtocolError("the server hung up")

    for lost in (False, True):
        (tmp_path / "file").write_bytes(data)
        with monkeypatch.context() as broken:
            broken.setattr(MultipartClient, "complete", hang_up)
            with pytest.raises(StoreUnavailable):
                store.put_file("big", tmp_path / "file")
        if lost:
            store._client.abort(store._bucket, "big", store._cut_off["big"])
        data = b"changed" + data[7:]
        (tmp_path / "file").write_bytes(data)
        store.put_file("big", tmp_path / "file")
        assert store.get_bytes("big") == data


def test_an_object_replaced_while_it_is_read_is_not_mixed(s3: S3Server) -> None:
    store = made(s3)
    store.put_bytes("key", b"a" * 60 * MB)
    chunks = store.read("key")
    assert next(chunks) == b"a" * MB
    with store.writer("key") as file:
        file.write(b"b" * 60 * MB)
    with pytest.raises(StoreUnavailable):
        list(chunks)


def test_failing_uploads_leave_no_threads_behind(s3: S3Server) -> None:
    store = made(s3)
    before = 0
    for _ in range(4):
        with pytest.raises(RuntimeError):
            write_half(store, "key", noise(20 * MB), RuntimeError())
        before = before or threading.active_count()
    assert threading.active_count() <= before + 8


# The choice by URL.


@pytest.mark.parametrize(
    "url", ["http://x/y", "s3://host:9000", "s3://host:9000/a/b", "s3://host:9000/B", "file://", "x"]
)
def test_a_wrong_url_is_named(url: str) -> None:
    with pytest.raises(SettingsError, match="LLMOS_STORE_URL"):
        connect(Settings(store_url=url))


def test_the_url_picks_the_store(tmp_path: Path) -> None:
    assert isinstance(connect(Settings(home=tmp_path)), LocalStore)
    s3 = Settings(store_url="s3://host:9000/bucket", s3_access_key="a", s3_secret_key="b")
    assert isinstance(connect(s3), S3Store)
