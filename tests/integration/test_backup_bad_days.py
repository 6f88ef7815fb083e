"""`llmos admin backup` and `restore` where something is wrong: one sentence, an exit code, and nothing broken by it.

On one machine's files and databases, since the damage is done to files. A cluster is backed up in test_backup.py.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import select

from llmos.cli import main
from services.registry.main import Service
from services.registry.tables import versions
from shared.backup.copying import Silent
from shared.backup.index import read_store
from shared.backup.place import Place, copy_verified, place_at
from shared.backup.system import SERVICES, System, system_of
from shared.backup.taking import take
from shared.bus.memory import MemoryBus
from shared.bus.valkey import ValkeyBus
from shared.contracts.artifacts import ArtifactKind, DeleteArtifact
from shared.contracts.bookmarks import BOOKMARK, TableBookmark
from shared.contracts.topics import REGISTRY_STATE
from shared.db import migrate, open_database
from shared.settings import Settings
from shared.store.local import LocalStore
from shared.store.port import OnBytes, StoreUnavailable
from tests.integration.registry_world import Client, start_registry
from tests.ports import free_port
from tests.postgres_server import PostgresServer
from tests.servers import valkey


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return orjson.loads(self.out)


Llmos = Callable[..., Done]


@dataclass
class Filled:
    """A system with three artifacts, and its registry, which runs."""

    home: Path
    client: Client
    service: Service

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.home / "objects")

    def blob(self, number: int = 0) -> Path:
        return sorted(path for path in (self.home / "objects" / "blobs").rglob("*") if path.is_file())[number]


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Filled]:
    home, bus = tmp_path / "home", MemoryBus()
    for service in SERVICES:
        migrate(open_database(f"sqlite:///{home / 'db' / f'{service}.sqlite'}"), f"services.{service}.migrations")
    store = LocalStore(home / "objects")
    registry = start_registry(home, store, bus, f"sqlite:///{home / 'db' / 'registry.sqlite'}")
    client = Client(store, bus, tmp_path / "staged")
    for name in ("one", "two", "three"):
        client.published(name, {"report.json": name.encode() * 1000, "same.json": b"same"}, kind=ArtifactKind.report)
    yield Filled(home, client, registry)
    registry.stop()


@pytest.fixture
def llmos(filled: Filled, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Llmos:
    monkeypatch.setenv("COLUMNS", "400")

    def command(*words: str | Path, home: Path = filled.home, **settings: str) -> Done:
        with monkeypatch.context() as environment:
            for name, value in settings.items():
                environment.setenv(f"LLMOS_{name.upper()}", value)
            environment.setattr(sys, "argv", ["llmos", "--home", str(home), "admin", *map(str, words)])
            capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Done(int(ended.value.code or 0), said.out, said.err)

    return command


@pytest.fixture
def place(llmos: Llmos, tmp_path: Path) -> Path:
    """A backup of the filled system."""
    assert llmos("backup", tmp_path / "saved").code == 0
    return tmp_path / "saved"


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def opened(home: Path, place: Path) -> tuple[System, Place]:
    settings = Settings(home=home)
    return system_of(settings, must_exist=True), place_at(str(place), settings, must_exist=False)


def test_a_second_backup_brings_only_what_is_new(filled: Filled, llmos: Llmos, place: Path) -> None:
    assert llmos("backup", place, "--json").json["copied_objects"] == 0
    filled.client.published("four", {"report.json": b"four", "same.json": b"same"}, kind=ArtifactKind.report)
    again = llmos("backup", place, "--json").json
    assert again["copied_objects"] == 3, "one file, its manifest, the staged manifest"
    assert [found["id"] for found in llmos("backups", place, "--json").json][-1] == again["id"]
    assert llmos("verify", place).code == 0


def test_a_system_is_restored_to_any_of_its_backups(filled: Filled, llmos: Llmos, place: Path, tmp_path: Path) -> None:
    first = llmos("backups", place, "--json").json[0]["id"]
    filled.client.published("four", {"report.json": b"four"}, kind=ArtifactKind.report)
    llmos("backup", place)
    assert llmos("restore", place, "--backup", first, home=tmp_path / "a").code == 0
    newest = llmos("restore", place, "--json", home=tmp_path / "b").json
    assert newest["verified"] | {"size_bytes": 0} == {"artifacts": 4, "files": 7, "size_bytes": 0, "broken": []}
    assert llmos("verify", "--json", home=tmp_path / "a").json["artifacts"] == 3


@pytest.mark.parametrize("part", ["backup.json", "gateway.rows", "objects.index", "blob"])
def test_a_flipped_byte_in_a_backup_is_found_before_it_harms(
    part: str, llmos: Llmos, place: Path, tmp_path: Path
) -> None:
    path = next(place.glob(f"backups/*/{part}" if part != "blob" else "blobs/*/*"))
    flip(path)
    for command in ("verify", "restore"):
        done = llmos(command, place, home=tmp_path / "new")
        assert done.code == 1
        assert "sha256 differs" in done.err
    assert not (tmp_path / "new" / "db" / "scheduler.sqlite").exists() or part == "blob"
    if part == "blob":  # what could be damaged is not there, and the databases were not touched
        assert llmos("verify", home=tmp_path / "new").code == 2


def test_a_missing_object_of_a_backup_is_found_before_anything_is_restored(
    llmos: Llmos, place: Path, tmp_path: Path
) -> None:
    next(place.glob("blobs/*/*")).unlink()
    done = llmos("restore", place, home=tmp_path / "new")
    assert (done.code, "missing or cut" in done.err) == (1, True)
    assert not (tmp_path / "new" / "objects" / "blobs").exists()


def test_what_is_broken_in_the_system_is_named_and_the_rest_is_saved(
    filled: Filled, llmos: Llmos, tmp_path: Path
) -> None:
    flip(filled.blob())
    done = llmos("verify", "--json")
    broken = {each["what"] for each in done.json["broken"]}
    assert done.code == 1
    assert broken
    saved = llmos("backup", tmp_path / "saved", "--json")
    assert saved.code == 1
    assert set(saved.json["broken"]) == broken
    assert all(what in saved.err for what in broken)
    assert llmos("verify", tmp_path / "saved").code == 1


def test_a_system_with_something_in_it_is_only_replaced_when_told_to(filled: Filled, llmos: Llmos, place: Path) -> None:
    refused = llmos("restore", place)
    assert (refused.code, "--replace" in refused.err) == (5, True)
    filled.service.stop()
    flip(filled.blob())
    filled.blob(1).unlink()
    assert llmos("restore", place, "--replace").code == 0
    assert llmos("verify").code == 0


def test_a_store_with_other_things_in_it_is_not_restored_into(llmos: Llmos, place: Path, tmp_path: Path) -> None:
    LocalStore(tmp_path / "new" / "objects").put_bytes("manifests/default/mine/1.json", b"{}")
    done = llmos("restore", place, home=tmp_path / "new")
    assert (done.code, "manifests/default/mine/1.json" in done.err) == (5, True)


def test_a_bus_with_old_states_on_it_is_not_restored_under(
    filled: Filled, llmos: Llmos, place: Path, tmp_path: Path
) -> None:
    with valkey(durable=True) as server:
        url = server.bus_url
        bus = ValkeyBus(url, "test")
        now = datetime.now(UTC)
        bus.publish(REGISTRY_STATE, BOOKMARK, TableBookmark(complete_since=now, complete_until=now)).result(10)
        assert llmos("restore", place, home=tmp_path / "new", bus_url=url).code == 0  # an empty table was complete
        bus.publish(REGISTRY_STATE, *next(iter(filled.client.states.items()))).result(10)
        bus.close()
        done = llmos("restore", place, home=tmp_path / "newer", bus_url=url)
        assert (done.code, "registry.state shows 1 keys" in done.err) == (5, True)


def test_a_backup_that_breaks_off_is_none_and_the_next_one_goes_on(
    filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, place = opened(filled.home, tmp_path / "saved")
    copied = list[str]()

    def breaks(source: Any, key: str, target: Any, to: str, sha256: str, on_bytes: OnBytes) -> bool:
        if len(copied) >= 5:
            raise StoreUnavailable("the plug was pulled")
        copied.append(key)
        return copy_verified(source, key, target, to, sha256, on_bytes)

    with monkeypatch.context() as plug:
        plug.setattr("shared.backup.taking.copy_verified", breaks)
        with pytest.raises(StoreUnavailable):
            take(system, place, Silent())
    assert place.backups() == []
    kept = len(place.blobs())
    assert kept
    taken = take(system, place, Silent())
    assert taken.copied_objects == len(place.blobs()) - kept
    assert taken.backup.broken == []


def test_a_restore_that_breaks_off_between_two_databases_is_run_again(
    llmos: Llmos, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(sql: object, restored: object) -> None:
        raise StoreUnavailable("the plug was pulled")

    with monkeypatch.context() as plug:
        plug.setattr("services.gateway.backup.settle", breaks)
        assert llmos("restore", place, home=tmp_path / "new").code == 4
    half = llmos("restore", place, home=tmp_path / "new")
    assert (half.code, "after a restore that broke off" in half.err) == (5, True)
    assert llmos("restore", place, "--replace", home=tmp_path / "new").code == 0
    assert llmos("backup", tmp_path / "again", home=tmp_path / "new").code == 0


def test_what_is_deleted_while_a_backup_is_taken_is_not_in_it(
    filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a registry does that collects garbage: the version goes from SQL, and then its blobs from the store."""
    system, place = opened(filled.home, tmp_path / "saved")

    def deletes_first(store: LocalStore) -> Any:
        if store.stat("manifests/default/one/1.json"):
            filled.client.answer(filled.client.send(DeleteArtifact(name="one")))
            store.delete("manifests/default/one/1.json")
        return read_store(store)

    monkeypatch.setattr("shared.backup.taking.read_store", deletes_first)
    assert take(system, place, Silent()).backup.broken == []


def test_a_full_disk_is_said_in_a_sentence(filled: Filled, tmp_path: Path) -> None:
    """A limit on the size of files stands for it; SQLite's own small files fit."""
    filled.client.published("large", {"data.json": os.urandom(300_000)}, kind=ArtifactKind.report)
    (tmp_path / "full").mkdir()
    command = [sys.executable, "-m", "llmos", "--home", str(filled.home), "admin", "backup", str(tmp_path / "full")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )
    assert done.returncode == 1
    assert "no room is left" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["backup", "/nowhere/at/all"], 2, "there is no folder /nowhere/at"),
        (["backup", "ftp://host/x"], 2, "neither a folder nor s3://"),
        (["backup", "s3://127.0.0.1:1/bucket"], 4, "does not answer"),
        (["restore", "/nowhere/at/all"], 3, "there is no folder"),
        (["restore", "EMPTY"], 3, "holds no backup"),
        (["restore", "PLACE", "--backup", "20000101T000000Z"], 3, "holds no backup '20000101T000000Z'"),
        (["backup", "HOME/objects/saved"], 2, "the system's own object store"),
    ],
)
def test_a_place_that_cannot_be_is_said_in_a_sentence(
    words: list[str], code: int, said: str, filled: Filled, llmos: Llmos, place: Path
) -> None:
    for name, path in {"PLACE": place, "HOME": filled.home, "EMPTY": filled.client.folder}.items():
        words = [word.replace(name, str(path)) for word in words]
    done = llmos(*words)
    assert done.code == code
    assert said in done.err
    assert len(done.err.splitlines()) == 1


def test_a_system_that_is_not_there_cannot_be_saved(llmos: Llmos, tmp_path: Path) -> None:
    done = llmos("backup", tmp_path / "saved", home=tmp_path / "none")
    assert (done.code, "there is no system" in done.err) == (2, True)
    assert not (tmp_path / "none").exists()


def test_one_database_for_three_services_is_refused(llmos: Llmos, tmp_path: Path) -> None:
    done = llmos("backup", tmp_path / "saved", db_url="postgresql+psycopg://a:b@127.0.0.1:1/c")
    assert (done.code, "LLMOS_SCHEDULER_DB_URL" in done.err) == (2, True)


def test_wrong_credentials_and_a_server_that_is_away_are_said_in_a_sentence(
    llmos: Llmos, postgres: PostgresServer, tmp_path: Path
) -> None:
    wrong = postgres.url(postgres.new_database(), password="not-it")
    done = llmos("backup", tmp_path / "saved", scheduler_db_url=wrong)
    assert (done.code, "LLMOS_SCHEDULER_DB_URL" in done.err, "not-it" in done.err) == (2, True, False)
    away = f"postgresql+psycopg://a:b@127.0.0.1:{free_port()}/c"
    done = llmos("backup", tmp_path / "saved", gateway_db_url=away)
    assert (done.code, "the gateway's database" in done.err) == (4, True)
    assert len(done.err.splitlines()) == 1


def test_nobody_is_restored_under(llmos: Llmos, place: Path, postgres: PostgresServer, tmp_path: Path) -> None:
    urls = {f"{service}_db_url": postgres.url(postgres.new_database()) for service in SERVICES}
    still_there = open_database(urls["registry_db_url"])
    with still_there.connect():
        done = llmos("restore", place, home=tmp_path / "new", **urls)
        assert (done.code, "stop all services first" in done.err) == (5, True)
    still_there.dispose()
    assert llmos("restore", place, home=tmp_path / "new", **urls).code == 0


def test_a_backup_of_a_newer_release_is_refused(filled: Filled, llmos: Llmos, tmp_path: Path) -> None:
    registry = open_database(f"sqlite:///{filled.home / 'db' / 'registry.sqlite'}")
    with registry.begin() as sql:
        sql.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        assert len(sql.execute(select(versions)).all()) == 3
    assert llmos("backup", tmp_path / "saved").code == 0
    done = llmos("restore", tmp_path / "saved", home=tmp_path / "new")
    assert (done.code, "newer release" in done.err) == (2, True)
