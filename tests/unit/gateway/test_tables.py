"""What the code believes of its tables, and what the migrations build, are one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

import services.gateway.tables as gateway
import services.registry.tables as registry
import services.scheduler.tables as scheduler
from services.gateway.answers.fine_tuning import STATUS
from services.gateway.keys import Keys
from services.gateway.steering import HAPPENS_ALREADY, REFUSED
from shared.contracts.jobs import JobStatus
from shared.db import migrate, open_database
from shared.settings import Settings
from tests.databases import NewDatabase


@pytest.mark.parametrize("tables", [gateway, registry, scheduler], ids=lambda tables: tables.__name__)
def test_migrations_build_the_tables_that_the_code_uses(tables: ModuleType, new_database: NewDatabase) -> None:
    engine = open_database(new_database(tables.__name__.split(".")[1]))
    with engine.connect() as sql:
        assert compare_metadata(MigrationContext.configure(sql), tables.metadata) == []


def test_every_status_has_its_openai_word() -> None:
    assert set(STATUS) == set(JobStatus)


def test_no_status_both_refuses_a_command_and_has_it_happen() -> None:
    for command, statuses in HAPPENS_ALREADY.items():
        assert not statuses & REFUSED[command]


def test_the_first_start_makes_one_key_and_keeps_it_to_its_owner(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/gateway.sqlite")
    migrate(engine, "services.gateway.migrations")
    settings = Settings(home=tmp_path)
    for _ in range(2):
        Keys(engine).ensure_first(settings)
    file = tmp_path / "key"
    key = file.read_text()
    assert key == key.strip(), "clients put the file's text into a header as it is"
    assert key.startswith("sk-llmos-")
    assert file.stat().st_mode & 0o777 == 0o600
    keys = Keys(engine)
    assert keys.remembered(key) is None
    found = keys.find(key)
    assert found is not None
    assert found.tenant == "default"
    assert keys.remembered(key) == found
    assert keys.find("wrong") is None
    assert key.encode() not in b"".join(path.read_bytes() for path in tmp_path.glob("gateway.sqlite*"))


def test_a_key_of_the_settings_ends_when_they_say_another_one(tmp_path: Path, new_database: NewDatabase) -> None:
    engine = open_database(new_database("gateway"))
    for key in ("sk-old", "sk-new"):
        Keys(engine).ensure_first(Settings(home=tmp_path, api_key=key))
    Keys(engine).add("sk-another", name="somebody")
    Keys(engine).ensure_first(Settings(home=tmp_path, api_key="sk-new"))
    keys = Keys(engine)
    assert keys.find("sk-old") is None
    assert keys.find("sk-new")
    assert keys.find("sk-another")


def test_a_key_of_the_settings_ends_when_they_say_none(tmp_path: Path, new_database: NewDatabase) -> None:
    engine = open_database(new_database("gateway"))
    Keys(engine).ensure_first(Settings(home=tmp_path, api_key="sk-old"))
    Keys(engine).ensure_first(Settings(home=tmp_path))
    assert Keys(engine).find("sk-old") is None
    assert Keys(engine).find((tmp_path / "key").read_text())


def test_gateways_that_start_at_once_know_one_key_of_the_settings(tmp_path: Path, new_database: NewDatabase) -> None:
    url = new_database("gateway")

    def start(key: str) -> Keys:
        keys = Keys(open_database(url))
        keys.ensure_first(Settings(home=tmp_path, api_key=key))
        return keys

    with ThreadPoolExecutor(4) as pool:
        keys, *_ = pool.map(start, ["sk-one", "sk-two", "sk-one", "sk-two"])
    assert len([key for key in ("sk-one", "sk-two") if keys.find(key)]) == 1


def test_the_examples_key_is_one_in_a_trial_only(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/gateway.sqlite")
    migrate(engine, "services.gateway.migrations")
    key = "sk-llmos-change-me"
    Keys(engine).add(key)
    assert Keys(engine).find(key) is None
    assert Keys(engine, trial=True).find(key)
