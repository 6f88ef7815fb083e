"""What the outbox publishes: states before the answers that speak of them, whoever writes meanwhile."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future

import pytest
from sqlalchemy import Engine, event

from services.registry import outbox as module
from services.registry.answers import mark_states, write_answer
from services.registry.outbox import Outbox
from shared.bus.memory import MemoryBus
from shared.bus.port import BusUnavailable, Position
from shared.contracts.artifacts import CommandDone
from shared.contracts.message import Message
from shared.contracts.topics import REGISTRY_EVENTS, REGISTRY_STATE, Topic
from shared.db import open_database
from tests.databases import NewDatabase
from tests.waiting import eventually

STATE, ANSWER = REGISTRY_STATE.name, REGISTRY_EVENTS.name


class NotedBus(MemoryBus):
    """Notes what is published, in its order; refuses the keys in `refused`."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[tuple[str, str]] = []
        self.refused: set[str] = set()
        self.refusals = 0

    def publish(self, topic: Topic, key: str, message: Message | None) -> Future[Position]:
        if key in self.refused:
            self.refusals += 1
            failed = Future[Position]()
            failed.set_exception(BusUnavailable("away"))
            return failed
        self.published.append((topic.name, key))
        return super().publish(topic, key, message)


@pytest.fixture
def db_url(new_database: NewDatabase) -> str:
    return new_database("registry")


@pytest.fixture
def engine(db_url: str) -> Engine:
    return open_database(db_url)


@pytest.fixture
def bus() -> NotedBus:
    return NotedBus()


def finish(engine: Engine, name: str) -> None:
    """As a command that changed this name's aliases."""
    with engine.begin() as connection:
        mark_states(connection, [f"default/{name}"])
        write_answer(connection, f"default/{name}", CommandDone(command_id=name))


def said(name: str) -> list[tuple[str, str]]:
    return [(STATE, f"default/{name}"), (ANSWER, f"default/{name}")]


@pytest.mark.parametrize("table", ["outbox_states", "outbox_answers"])
def test_an_answer_that_is_written_during_the_look_goes_after_its_state(
    engine: Engine, db_url: str, bus: NotedBus, table: str
) -> None:
    outbox, elsewhere, finished = Outbox(engine, bus), open_database(db_url), list[str]()

    @event.listens_for(engine, "after_cursor_execute")
    def finish_after(_: object, __: object, statement: str, *___: object) -> None:
        if not finished and statement.startswith("SELECT") and f"FROM {table}" in statement:
            finished.append("m")
            finish(elsewhere, "m")

    while outbox.publish_round() or not bus.published:
        pass
    assert bus.published == said("m")


def test_answers_wait_while_more_states_do_than_one_round_takes(
    engine: Engine, bus: NotedBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROUND", 2)
    outbox = Outbox(engine, bus)
    for name in ("a", "b", "c"):
        finish(engine, name)
    while outbox.publish_round():
        pass
    assert sorted(bus.published[:3]) == [said(name)[0] for name in ("a", "b", "c")]
    assert bus.published[3:] == [said(name)[1] for name in ("a", "b", "c")]


def test_no_answer_goes_before_a_state_that_the_bus_did_not_take(engine: Engine, bus: NotedBus) -> None:
    outbox = Outbox(engine, bus)
    finish(engine, "m")
    bus.refused = {"default/m"}
    with pytest.raises(BusUnavailable):
        outbox.publish_round()
    bus.refused = set()
    while outbox.publish_round():
        pass
    assert bus.published == said("m")


def test_looking_at_the_outbox_waits_for_no_writer(engine: Engine, bus: NotedBus) -> None:
    outbox = Outbox(engine, bus)
    finish(engine, "m")
    with engine.begin() as connection:
        mark_states(connection, ["default/n"])
        assert outbox.age_s() > 0


def test_a_bus_that_is_away_is_logged_once_and_so_is_its_return(
    engine: Engine, bus: NotedBus, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.1)
    outbox = Outbox(engine, bus)
    finish(engine, "m")
    bus.refused = {"default/m"}
    thread = threading.Thread(target=outbox.run)
    thread.start()
    try:
        eventually(lambda: bus.refusals >= 4)
        bus.refused = set()
        eventually(lambda: "the outbox works again" in caplog.messages)
    finally:
        outbox.stop()
        thread.join()
    assert caplog.messages == [
        "the outbox waits, and is tried again until it works: away",
        "the outbox works again",
    ]
