"""PostgreSQL under the services: migrations that many begin at once, sentences instead of traces, texts with NUL."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

import shared
from services.gateway.keys import Keys
from services.scheduler.truth import take_over
from shared.db import AWAY, DatabaseAway, migrate, newest_version, open_database, ping
from shared.db.locks import turn
from shared.db.postgres import CLIENT, SERVER
from shared.settings import SettingsError
from tests.ports import free_port
from tests.postgres_server import PostgresServer, postgres_server

SERVICES = ["gateway", "scheduler", "registry"]


@pytest.fixture
def empty(postgres: PostgresServer) -> Iterator[str]:
    """The URL of a database without a table."""
    name = postgres.new_database()
    yield postgres.url(name)
    postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


def migrating(service: str, db_url: str, *words: str) -> subprocess.Popen[str]:
    """`python -m services.<service>.migrate`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LLMOS_")}
    command = [sys.executable, "-m", f"services.{service}.migrate", *words]
    environment = clean | {"LLMOS_DB_URL": db_url}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("service", SERVICES)
def test_many_that_start_at_once_on_an_empty_database_all_find_the_schema(service: str, empty: str) -> None:
    engines = [open_database(empty) for _ in range(4)]
    with ThreadPoolExecutor(len(engines)) as pool:
        list(pool.map(lambda engine: migrate(engine, f"services.{service}.migrations"), engines))
    with engines[0].connect() as sql:
        version = sql.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
    assert len(inspect(engines[0]).get_table_names()) > 1
    assert version == newest_version(Path(shared.__file__ or "").parent.parent / "services" / service / "migrations")


def test_a_schema_that_a_newer_release_made_is_left_as_it_is(empty: str) -> None:
    """As in a rolling upgrade: the old gateway starts once more after the new one has migrated."""
    engine = open_database(empty)
    migrate(engine, "services.gateway.migrations")
    with engine.begin() as sql:
        sql.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    migrate(engine, "services.gateway.migrations")
    with engine.connect() as sql:
        assert sql.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "9999"


def test_migrate_waits_for_the_database_and_ends_when_it_is_done() -> None:
    with postgres_server() as server:
        url = server.url(server.new_database())
        server.stop()
        process = migrating("registry", url)
        assert process.stdout
        assert "waits for the database" in process.stdout.readline()
        server.start()
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 0, rest
        assert "up to date" in rest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("secret", "wrong"), "authentication failed"),
        (("/test_", "/none_"), "does not exist"),
    ],
)
def test_migrate_ends_with_a_sentence_where_the_server_refuses(empty: str, change: tuple[str, str], said: str) -> None:
    process = migrating("gateway", empty.replace(*change))
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert told.startswith("llmos: LLMOS_DB_URL")
    assert said in told
    assert len(told.splitlines()) == 1
    assert "wrong" not in told


def test_migrate_ends_with_a_sentence_when_its_time_is_over() -> None:
    process = migrating("gateway", f"postgresql+psycopg://a:b@127.0.0.1:{free_port()}/c", "--wait-s", "0.1")
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "did not answer in 0.1 s" in told.splitlines()[-1]
    assert "Traceback" not in told


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_with_wrong_credentials_ends_with_a_sentence(service: str, empty: str) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LLMOS_")}
    settings = {"LLMOS_DB_URL": empty.replace("secret", "wrong"), "LLMOS_BUS_URL": "memory://"}
    command = [sys.executable, "-m", f"services.{service}"]
    done = subprocess.run(command, env=clean | settings, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "LLMOS_DB_URL" in done.stderr.splitlines()[-1]
    assert "authentication failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_role_that_may_not_make_tables_is_told_so(postgres: PostgresServer) -> None:
    postgres.execute("CREATE DATABASE others")
    with pytest.raises(SettingsError, match="permission denied"):
        migrate(open_database(postgres.url("others")), "services.gateway.migrations")
    postgres.execute("DROP DATABASE others WITH (FORCE)")


def test_a_nul_in_a_text_does_not_stop_who_keeps_it(empty: str) -> None:
    engine = open_database(empty)
    migrate(engine, "services.gateway.migrations")
    keys = Keys(engine)
    keys.add("sk-1", name="a\0b")
    with engine.connect() as sql:
        assert sql.execute(text("SELECT name FROM api_keys")).scalar_one() == "a\ufffdb"


def test_a_turn_is_one_processes_at_a_time(empty: str) -> None:
    one, other = open_database(empty), open_database(empty)
    with turn(one, "x") as mine, turn(other, "x") as theirs, turn(other, "y") as another:
        assert (mine, theirs, another) == (True, False, True)
    with turn(other, "x") as theirs:
        assert theirs


def test_a_client_that_freezes_in_a_transaction_holds_nobody_up_for_ever(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(open_database(empty), "services.scheduler.migrations")
    monkeypatch.setitem(SERVER, "idle_in_transaction_session_timeout", "500")
    frozen, other = open_database(empty), open_database(empty)
    with frozen.connect() as sql:
        sql.execute(text("UPDATE leader SET epoch = epoch + 1"))
        assert take_over(other) == 1
        with pytest.raises(AWAY):
            sql.execute(text("SELECT 1"))


def test_a_server_that_hangs_is_told_to_who_waits_and_works_again_when_it_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(CLIENT, "connect_timeout", 2)
    with postgres_server() as server, ThreadPoolExecutor(2) as pool:
        engine = open_database(server.url(server.new_database()))
        ping(engine)
        with engine.connect() as sql, server.frozen():
            waiting = pool.submit(sql.execute, text("SELECT 1"))
            with pytest.raises(AWAY, match="hangs"):
                waiting.result(30)
            with pytest.raises(DatabaseAway):
                pool.submit(ping, engine).result(30)
        ping(engine)


def test_a_statement_that_takes_long_is_no_server_that_hangs(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.db.silence.SILENCE_S", 0.1)
    with open_database(empty).connect() as sql:
        assert sql.execute(text("SELECT 1 FROM pg_sleep(1)")).scalar_one() == 1


def test_connections_that_a_restart_took_are_made_anew() -> None:
    with postgres_server() as server:
        engine = open_database(server.url(server.new_database()))
        with engine.connect() as sql:
            sql.execute(text("SELECT 1"))
        server.stop()
        server.start()
        with engine.connect() as sql:
            assert sql.execute(text("SELECT 1")).scalar_one()
