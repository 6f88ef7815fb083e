"""What the bus shows otherwise than the truth is published again, and each table is read once for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import event

from services.scheduler.comparison import TRUTH, Comparison
from services.scheduler.liveness import Liveness
from services.scheduler.monitor import COMPARE_S, Monitor
from services.scheduler.outbox import Outbox
from services.scheduler.truth import Truth, take_over
from shared.bus.memory import MemoryBus
from shared.contracts.bookmarks import BOOKMARK
from shared.contracts.topics import DEPLOYMENTS_DESIRED, JOBS_STATE
from shared.db import open_database
from shared.doorbell.memory import MemoryDoorbell
from tests.databases import NewDatabase
from tests.unit.scheduler.clock import FakeClock
from tests.unit.scheduler.jobs import a_job
from tests.waiting import eventually


class Desk:
    """A monitor with a clock that the test moves."""

    def __init__(self, db_url: str) -> None:
        self.bus = MemoryBus()
        self.clock = FakeClock()
        engine = open_database(db_url)
        self.truth = Truth(engine, take_over(engine))
        self.outbox = Outbox(self.truth, self.bus, MemoryDoorbell(), self.clock)
        self.comparison = Comparison(self.truth, self.clock)
        liveness = Liveness(self.clock, timeout_s=10_000)
        self.monitor = Monitor(self.truth, self.outbox, liveness, self.comparison, self.bus, "scheduler", self.clock)
        self.comparison.follow(self.bus)
        eventually(lambda: self.comparison.ready)

    def compare(self) -> list[str]:
        """One comparison, a minute after the last; returns what it asked of the database."""
        asked: list[str] = []

        def note(_: object, __: object, statement: str, *___: object) -> None:
            asked.append(statement)

        self.clock.passed_s += COMPARE_S
        event.listen(self.truth.engine, "before_cursor_execute", note)
        try:
            self.monitor.compare()
        finally:
            event.remove(self.truth.engine, "before_cursor_execute", note)
        return asked

    def bookmarked(self) -> set[str]:
        logs = self.bus.server.logs
        return {topic.name for topic in TRUTH if any(it.key == BOOKMARK for it in logs[topic.name].records)}


@pytest.fixture
def desk(new_database: NewDatabase) -> Iterator[Desk]:
    desk = Desk(new_database("scheduler"))
    yield desk
    desk.bus.close()
    desk.truth.engine.dispose()


def test_a_comparison_reads_each_table_once(desk: Desk) -> None:
    desk.compare()
    asked = [statement for statement in desk.compare() if statement.startswith("SELECT")]
    assert len(asked) == len(TRUTH)


def test_tables_that_readers_keep_are_bookmarked_once_they_show_all(desk: Desk) -> None:
    with desk.truth.work() as work:
        work.put(a_job())
    desk.compare()
    desk.compare()
    assert desk.bookmarked() == {DEPLOYMENTS_DESIRED.name}  # the job was marked, and nothing publishes here
    desk.outbox.publish_round()
    eventually(lambda: desk.compare() != [] and desk.bookmarked() == {DEPLOYMENTS_DESIRED.name, JOBS_STATE.name})
