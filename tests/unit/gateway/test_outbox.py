"""Submissions: one for one key, published until they are through, in order about one subject."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, update

from services.gateway.errors import Conflict, Unavailable
from services.gateway.submissions import Asked, Order, Submissions
from services.gateway.tables import submissions
from shared.bus.memory import MemoryBus
from shared.contracts.artifacts import SetAlias
from shared.contracts.jobs import CancelJob
from shared.contracts.message import decode
from shared.contracts.topics import JOBS_COMMANDS, REGISTRY_COMMANDS
from shared.db import migrate, open_database
from shared.settings import Settings
from tests.waiting import eventually


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    engine = open_database(f"sqlite:///{tmp_path}/gateway.sqlite")
    migrate(engine, "services.gateway.migrations")
    return engine


@pytest.fixture
def bus() -> Iterator[MemoryBus]:
    bus = MemoryBus()
    yield bus
    bus.close()


def asked(key: str | None = None, body: str = "b") -> Asked:
    return Asked("default", "POST /x", body, key)


def alias(version: int) -> Order:
    command = SetAlias(name="base", alias="production", version=version)
    return Order(REGISTRY_COMMANDS, "default/base", "base", command, until="answered")


def published(bus: MemoryBus, topic: str) -> list[object]:
    return [decode(record.raw) for record in bus.server.logs[topic].records if record.raw]


def test_a_second_command_about_a_subject_waits_for_the_answer_to_the_first(engine: Engine, bus: MemoryBus) -> None:
    accepting = Submissions(engine, bus, Settings())
    first = accepting.accept(asked(), alias(1))
    accepting.accept(asked(), alias(2))
    assert [one.version for one in published(bus, "registry.commands")] == [1]  # type: ignore[attr-defined]
    accepting.start()
    with engine.begin() as sql:
        answered = submissions.c.command_id == first.command_id
        sql.execute(update(submissions).where(answered).values(done_at=datetime.now(UTC)))
    accepting.outbox.nudge()
    versions = eventually(
        lambda: seen if 2 in (seen := [one.version for one in published(bus, "registry.commands")]) else None  # type: ignore[attr-defined]
    )
    assert versions == sorted(versions or [])
    accepting.stop()


def test_what_the_bus_did_not_take_is_published_when_it_is_back(engine: Engine, bus: MemoryBus) -> None:
    bus.away = True
    accepting = Submissions(engine, bus, Settings())
    order = Order(JOBS_COMMANDS, "job-1", "job-1", CancelJob(job_id="job-1"), until="published")
    command_id = accepting.accept(asked(), order).command_id
    assert accepting.outcome(command_id) == (False, None)
    assert accepting.outbox.oldest_unpublished() is not None
    bus.away = False
    accepting.start()
    eventually(lambda: accepting.outcome(command_id) == (True, None))
    assert accepting.outbox.oldest_unpublished() is None
    accepting.stop()


def test_keys_and_limits(engine: Engine, bus: MemoryBus) -> None:
    bus.away = True
    accepting = Submissions(engine, bus, Settings(max_unpublished=1))
    first = accepting.accept(asked("k"), alias(1))
    again = accepting.accept(asked("k"), alias(1))
    assert (again.command_id, again.joined) == (first.command_id, True)
    with pytest.raises(Conflict):
        accepting.accept(asked("k", body="other"), alias(1))
    with pytest.raises(Unavailable):
        accepting.accept(asked("other"), alias(2))
