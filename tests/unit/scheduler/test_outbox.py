"""What was written down to be said is said, in order, until the bus has it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from services.scheduler import outbox as module
from services.scheduler.ledger import Ledger
from services.scheduler.outbox import Outbox
from services.scheduler.rules import Limits
from services.scheduler.truth import Truth, take_over
from shared.bus.port import BusUnavailable, Position
from shared.contracts.jobs import JobState, JobTransitioned
from shared.contracts.message import Message
from shared.contracts.topics import JOBS_EVENTS, JOBS_STATE, Topic
from shared.db import open_database
from shared.doorbell.memory import MemoryDoorbell
from tests.databases import NewDatabase
from tests.unit.scheduler.clock import FakeClock
from tests.unit.scheduler.jobs import a_job, dispatch, started
from tests.waiting import eventually


class RecordingBus:
    """Takes everything, or nothing while `away`; `meanwhile` runs while a message is in flight."""

    def __init__(self) -> None:
        self.took: list[tuple[str, Message | None]] = []
        self.away = False
        self.refusals = 0
        self.meanwhile: Callable[[], None] = lambda: None

    def publish(self, topic: Topic, key: str, message: Message | None) -> Future[Position]:
        future: Future[Position] = Future()
        if self.away:
            self.refusals += 1
            future.set_exception(BusUnavailable("away"))
            return future
        self.took.append((topic.name, message))
        now, self.meanwhile = self.meanwhile, lambda: None
        now()
        future.set_result(Position(0, len(self.took)))
        return future

    def of(self, topic: Topic) -> list[Message | None]:
        return [message for name, message in self.took if name == topic.name]


class Desk:
    def __init__(self, db_url: str) -> None:
        engine = open_database(db_url)
        self.truth = Truth(engine, take_over(engine))
        self.bus, self.doorbell, clock = RecordingBus(), MemoryDoorbell(), FakeClock()
        self.ledger = Ledger(self.truth, clock, Limits(), on_written=lambda: None)
        self.outbox = Outbox(self.truth, self.bus, self.doorbell, clock)  # type: ignore[arg-type]

    def add(self) -> None:
        with self.ledger.decide() as work:
            self.ledger.add(work, a_job())

    def tell(self, *messages: object) -> None:
        for message in messages:
            with self.ledger.decide() as work:
                self.ledger.tell(work, work.jobs(["j1"])["j1"], message)  # type: ignore[arg-type]

    def tell_and_fail(self) -> None:
        with self.ledger.decide() as work:
            self.ledger.tell(work, work.jobs(["j1"])["j1"], dispatch())
            work.jobs([])["nobody"]

    def drain(self) -> None:
        while self.outbox.publish_round() != (0, 0):
            pass

    def versions(self) -> list[int]:
        return [state.version for state in self.bus.of(JOBS_STATE) if isinstance(state, JobState)]


@pytest.fixture
def desk(new_database: NewDatabase) -> Desk:
    return Desk(new_database("scheduler"))


def test_the_state_is_published_as_it_is_now_and_not_as_it_was(desk: Desk) -> None:
    desk.add()
    desk.tell(dispatch(), started())
    desk.drain()
    assert desk.versions() == [3]


def test_a_state_that_changes_while_it_is_in_flight_is_published_again(desk: Desk) -> None:
    desk.add()
    desk.bus.meanwhile = lambda: desk.tell(dispatch())
    desk.drain()
    assert desk.versions() == [1, 2]


def test_events_of_a_job_go_one_after_the_other(desk: Desk) -> None:
    desk.add()
    desk.tell(dispatch(), started())
    assert desk.outbox.publish_round()[0] > 0
    events = desk.bus.of(JOBS_EVENTS)
    assert [event.after for event in events if isinstance(event, JobTransitioned)] == ["starting"]
    desk.drain()
    events = desk.bus.of(JOBS_EVENTS)
    assert [event.after for event in events if isinstance(event, JobTransitioned)] == ["starting", "running"]


def test_nothing_is_forgotten_while_the_bus_is_away(desk: Desk) -> None:
    desk.bus.away = True
    desk.add()
    desk.tell(dispatch())
    assert desk.outbox.publish_round() == (0, 3)
    assert desk.doorbell.rung == []
    desk.bus.away = False
    desk.drain()
    assert desk.versions() == [2]
    assert desk.doorbell.rung == [("n1", "j1", 1)]


def test_a_failed_decision_writes_nothing(desk: Desk) -> None:
    desk.add()
    desk.drain()
    with pytest.raises(KeyError):
        desk.tell_and_fail()
    assert desk.outbox.publish_round() == (0, 0)
    with desk.ledger.decide() as work:
        assert work.jobs(["j1"])["j1"].status == "queued"


def test_a_bus_that_is_away_is_logged_once_and_so_is_its_return(
    desk: Desk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.1)
    desk.bus.away = True
    desk.add()
    thread = threading.Thread(target=desk.outbox.run)
    thread.start()
    try:
        eventually(lambda: desk.bus.refusals >= 4)
        desk.bus.away = False
        eventually(lambda: "the outbox works again" in caplog.messages)
    finally:
        desk.outbox.stop()
        thread.join()
    assert caplog.messages == [
        "the outbox waits, and is tried again until it works: away",
        "the outbox works again",
    ]
