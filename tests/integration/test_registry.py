"""The registry between a real bus and a real store: what is published is whole, once, and stays."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from uuid import uuid4

import pytest

from services.registry.main import Service
from shared.contracts.artifacts import (
    ArtifactKind,
    CommandDone,
    CommandRejected,
    DeleteArtifact,
    Manifest,
    PublishArtifact,
    SetAlias,
    blob_key,
)
from shared.contracts.topics import REGISTRY_COMMANDS
from shared.store.cache import ArtifactCache
from shared.store.port import ObjectStore
from shared.store.s3 import S3Store
from shared.store.staging import read_manifest
from tests.contract.bus_worlds import ValkeyWorld
from tests.ground import Ground
from tests.integration.registry_world import Client, start_registry, tensors
from tests.s3_server import S3Server, s3_server
from tests.servers import valkey
from tests.waiting import eventually


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def store(ground: Ground) -> ObjectStore:
    return ground.store()


@pytest.fixture
def db_url(ground: Ground) -> str:
    return ground.new_database("registry")


@pytest.fixture
def start(ground: Ground, store: ObjectStore, tmp_path: Path, db_url: str) -> Iterator[Callable[[], Service]]:
    running: list[Service] = []

    def start_one() -> Service:
        running.append(start_registry(tmp_path, store, ground.bus(), db_url))
        return running[-1]

    yield start_one
    for service in running:
        service.stop()


@pytest.fixture
def client(ground: Ground, store: ObjectStore, tmp_path: Path, start: Callable[[], Service]) -> Client:
    start()
    return Client(store, ground.bus(), tmp_path)


def check_a_life(client: Client) -> None:
    """Publish twice, alias, delete; everything shows on the bus and can be pulled."""
    first = client.published("m", {"a/b.txt": b"one", "c": b"same"}, aliases=["production"], parents=["data@1"])
    second = client.published("m", {"a/b.txt": b"two", "c": b"same"}, job_id="job-7")
    assert first.artifact
    assert second.artifact
    assert (first.artifact.ref, second.artifact.ref) == ("m@1", "m@2")
    assert second.job_id == "job-7"
    client.sees(lambda: client.aliases("m") == {"latest": 2, "production": 1}, "the aliases")
    state = client.versions("m")[1]
    assert state.pin == first.artifact
    assert state.parents == ["data@1"]
    stored = read_manifest(client.store, state.manifest_key)
    assert stored == state.manifest
    origin = {"tenant": "default", "name": "m", "version": 1, "kind": "report", "parents": ["data@1"], "job": None}
    assert stored.metadata.items() >= origin.items()
    cache = ArtifactCache(client.store, client.folder / "cache", 10**9, 10**6)
    assert (cache.pull(first.artifact.manifest_key) / "a/b.txt").read_bytes() == b"one"
    assert isinstance(client.answer(client.send(SetAlias(name="m", alias="production", version=2))), CommandDone)
    client.sees(lambda: client.aliases("m") == {"latest": 2, "production": 2}, "the moved alias")
    assert isinstance(client.answer(client.send(DeleteArtifact(name="m", version=2))), CommandDone)
    client.sees(lambda: client.aliases("m") == {"latest": 1} and set(client.versions("m")) == {1}, "the deletion")
    third = client.published("m", {"x": b"3"})
    assert third.artifact
    assert third.artifact.version == 3


def test_versions_live_and_die(client: Client) -> None:
    check_a_life(client)


def test_versions_live_and_die_over_valkey_and_s3(s3: S3Server, tmp_path: Path) -> None:
    store = S3Store(s3.endpoint, "registry", s3.access_key, s3.secret_key)
    store.prepare()
    with valkey(durable=True) as server:
        world = ValkeyWorld(server)
        service, bus = start_registry(tmp_path, store, world.connect()), world.connect()
        check_a_life(Client(store, bus, tmp_path))
        bus.close()
        service.stop()


def test_the_same_publication_is_one_version(client: Client) -> None:
    prefix = client.stage({"a": b"1"})
    commands = [PublishArtifact(name="m", kind=ArtifactKind.report, staged_prefix=prefix, publication_id="p")] * 2
    commands += [commands[0].changed(id=uuid4().hex)]
    answers = [client.answer(client.send(command)) for command in commands]
    assert {answer.artifact.ref for answer in answers if isinstance(answer, CommandDone) and answer.artifact} == {"m@1"}
    client.sees(lambda: len(client.answers[commands[0].id]) >= 2, "an answer for every delivery")
    client.published("m", {"b": b"2"})
    assert client.aliases("m") == {"latest": 2}
    assert "already is m@1" in client.refused("other", prefix, publication_id="p")


def test_a_publication_is_still_answered_when_its_version_is_deleted(client: Client) -> None:
    prefix = client.stage({"a": b"1"})
    client.published("m", prefix, publication_id="p")
    client.answer(client.send(DeleteArtifact(name="m")))
    assert client.published("m", prefix, publication_id="p").artifact
    client.sees(lambda: not client.versions("m") and not client.aliases("m"), "nothing is left")


def test_tenants_do_not_see_each_other(client: Client) -> None:
    for tenant in ("a", "b"):
        done = client.published("m", {"x": tenant.encode()}, tenant=tenant, publication_id="same")
        assert done.artifact
        assert done.artifact.version == 1
    client.sees(lambda: bool(client.versions("m", "a") and client.versions("m", "b")))
    assert client.versions("m", "a")[1].manifest_key != client.versions("m", "b")[1].manifest_key


def test_equal_files_are_stored_once(client: Client) -> None:
    client.published("m", {"a": b"equal", "b": b"equal"})
    client.published("n", {"c": b"equal"})
    blobs = [blob.key for blob in client.store.list("blobs/")]
    assert blobs == [blob_key(hashlib.sha256(b"equal").hexdigest())]


def test_a_torn_blob_is_replaced(client: Client) -> None:
    key = blob_key(hashlib.sha256(b"whole").hexdigest())
    client.store.put_bytes(key, b"who")
    client.published("m", {"a": b"whole"})
    assert client.store.get_bytes(key) == b"whole"


def zipped() -> bytes:
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    return packed.getvalue()


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"pytorch_model.bin": b"x"}, "pytorch_model.bin"),
        ({"model.pt": b"x"}, "model.pt"),
        ({"sub/WEIGHTS.PTH": b"x"}, "WEIGHTS.PTH"),
        ({"model.gguf": b"x"}, "model.gguf"),
        ({"modeling_x.py": b"x"}, "modeling_x.py"),
        ({"config.json": pickle.dumps({"a": 1})}, "is a pickle"),
        ({"config.json": b"cos\nsystem\n(S'true'\ntR."}, "is a pickle"),
        ({"model.safetensors": zipped()}, "zip"),
        ({"weights": b"\x7fELF..."}, "a program"),
        ({"model.safetensors": b"short"}, "safetensors"),
        ({"model.safetensors": tensors()[:-1]}, "safetensors"),
    ],
)
def test_a_model_with_what_may_run_code_is_refused(client: Client, files: dict[str, bytes], reason: str) -> None:
    assert reason in client.refused("m", {"ok.txt": b"ok", **files}, kind=ArtifactKind.model)
    assert not client.versions("m")


def test_models_take_safetensors_and_checkpoints_their_optimizer(client: Client) -> None:
    client.published("m", {"model.safetensors": tensors(), "config.json": b"{}"}, kind=ArtifactKind.model)
    client.published("c", {"optimizer.pt": pickle.dumps({}), "w.safetensors": tensors()}, kind=ArtifactKind.checkpoint)
    assert "optimizer.pt" in client.refused("d", {"optimizer.pt": b"x"}, kind=ArtifactKind.dataset)


def manifest_with(client: Client, prefix: str, **changes: object) -> str:
    """Change the first file's entry of a staged manifest."""
    key = f"{prefix}/manifest.json"
    manifest = json.loads(client.store.get_bytes(key))
    manifest["files"][0] |= changes
    client.store.put_bytes(key, json.dumps(manifest).encode())
    return prefix


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"path": "../../blobs/x"}, "broken"),
        ({"path": "/etc/passwd"}, "broken"),
        ({"path": "b"}, "listed twice"),
        ({"path": "not-staged"}, "was not staged"),
        ({"path": "b/c"}, "a file and a folder"),
        ({"size_bytes": 7}, "its manifest says 7"),
        ({"size_bytes": -1}, "broken"),
        ({"sha256": "0" * 64}, "sha256 differs"),
        ({"sha256": "../x"}, "broken"),
        ({"sha256": "A" * 64}, "broken"),
    ],
)
def test_a_manifest_that_is_not_true_is_refused(client: Client, changes: dict[str, object], reason: str) -> None:
    prefix = manifest_with(client, client.stage({"a": b"1", "b": b"2"}), **changes)
    assert reason in client.refused("m", prefix)
    assert not list(client.store.list("blobs/"))
    client.published("m", {"fine": b"1"})


def test_what_was_never_staged_is_refused(client: Client) -> None:
    assert "not whole" in client.refused("m", "staging/nothing/1/r/outputs/m")
    assert "not in staging" in client.refused("m", "blobs/aa")
    client.store.put_bytes("staging/x/manifest.json", b"not json")
    assert "broken" in client.refused("m", "staging/x")
    client.store.put_bytes("staging/y/manifest.json", Manifest(files=[]).model_dump_json().encode())
    assert "no file" in client.refused("m", "staging/y")


def test_a_name_keeps_its_kind_while_it_has_versions(client: Client) -> None:
    client.published("m", {"a": b"1"}, kind=ArtifactKind.report)
    assert "kind report" in client.refused("m", {"a": b"1"}, kind=ArtifactKind.dataset)
    client.answer(client.send(DeleteArtifact(name="m")))
    again = client.published("m", {"a": b"1"}, kind=ArtifactKind.dataset)
    assert again.artifact
    assert (again.artifact.version, again.artifact.kind) == (2, ArtifactKind.dataset)


def test_aliases_and_deletions_of_what_is_not_there_are_refused(client: Client) -> None:
    client.published("m", {"a": b"1"})
    for command in (
        SetAlias(name="m", alias="production", version=2),
        SetAlias(name="nothing", alias="production", version=1),
        DeleteArtifact(name="nothing"),
        DeleteArtifact(name="m", version=2),
    ):
        answer = client.answer(client.send(command))
        assert isinstance(answer, CommandRejected)
        assert "not there" in answer.reason or "no artifact" in answer.reason
    assert isinstance(client.answer(client.send(SetAlias(name="m", alias="x", version=None))), CommandDone)


def test_deleting_twice_is_done_twice(client: Client) -> None:
    client.published("m", {"a": b"1"})
    for _ in range(2):
        assert isinstance(client.answer(client.send(DeleteArtifact(name="m", version=1))), CommandDone)


def test_a_command_that_cannot_be_read_is_answered(client: Client, ground: Ground) -> None:
    body = {"publication_id": "p", "name": "../evil", "kind": "model", "staged_prefix": "staging/x", "job_id": "job-1"}
    head = {"id": "broken-1", "type": "PublishArtifact", "schema_version": 1, "at": "2026-01-01T00:00:00Z"}
    ground.put_raw(REGISTRY_COMMANDS, "default/evil", json.dumps({**head, "tenant": "default", "body": body}).encode())
    answer = client.answer("broken-1")
    assert isinstance(answer, CommandRejected)
    assert (answer.publication_id, answer.job_id, answer.retryable) == ("p", "job-1", False)
    assert "evil" in answer.reason
    client.published("m", {"a": b"1"})


def test_a_wiped_bus_is_filled_again_at_the_next_start(
    client: Client, ground: Ground, store: ObjectStore, tmp_path: Path, db_url: str
) -> None:
    client.published("m", {"a": b"1"}, aliases=["production"])
    client.published("m", {"a": b"2"})
    client.answer(client.send(DeleteArtifact(name="m", version=2)))
    client.sees(lambda: set(client.versions("m")) == {1})
    ground.wipe_bus()
    service = start_registry(tmp_path, store, ground.bus(), db_url)
    newcomer = Client(store, ground.bus(), tmp_path)
    newcomer.sees(lambda: set(newcomer.versions("m")) == {1}, "the version")
    newcomer.sees(lambda: newcomer.aliases("m") == {"latest": 1, "production": 1}, "the aliases")
    service.stop()


def test_what_the_bus_shows_too_much_gets_a_tombstone(
    client: Client, store: ObjectStore, tmp_path: Path, ground: Ground
) -> None:
    client.published("m", {"a": b"1"})
    client.sees(lambda: bool(client.versions("m")))
    service = start_registry(tmp_path / "other", store, ground.bus(), ground.new_database("registry"))
    eventually(lambda: not client.states, 20, "tombstones of a registry that knows nothing")
    service.stop()
