"""Records of a topic that was wiped come after those before the wipe, and none passes for another."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, delete, select

from services.gateway.sql import writing
from services.gateway.tables import job_records
from services.gateway.view.bell import Bell
from services.gateway.view.reports import Reports
from shared.bus.port import Position, Record
from shared.contracts.jobs import LogLines
from shared.contracts.topics import JOBS_LOGS
from shared.db import migrate, open_database
from tests.databases import NewDatabase

AT = datetime(2030, 1, 1, tzinfo=UTC)


class Desk:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.restart()

    def restart(self) -> None:
        self.reports = Reports(self.engine, Bell())

    def read(self, *records: Record) -> None:
        self.reports.on_job_records(records)

    def lines(self, part: int = 0) -> list[str]:
        """In the order in which readers get them."""
        query = select(job_records.c.body).where(job_records.c.part == part).order_by(job_records.c.pos)
        with self.engine.connect() as sql:
            return [body["lines"][0] for body in sql.scalars(query)]


@pytest.fixture
def desk(new_database: NewDatabase) -> Desk:
    engine = open_database(new_database("gateway"))
    migrate(engine, "services.gateway.migrations")
    return Desk(engine)


def line(text: str, pos: int, age: int, part: int = 0) -> Record:
    """A line at `pos` of a topic, said `age` seconds after the first."""
    said = LogLines(job_id="j", attempt=1, run_id="r", lines=[text], at=AT + timedelta(seconds=age))
    return Record(JOBS_LOGS, "j", Position(part, pos), said)


OLD = (line("a", 0, 0), line("b", 1, 1), line("c", 2, 2))


@pytest.mark.parametrize("restarts", [True, False], ids=["a gateway that starts anew", "one that reads on"])
def test_what_comes_after_a_wipe_is_kept_and_stands_behind_what_was_before(desk: Desk, restarts: bool) -> None:
    desk.read(*OLD)
    if restarts:
        desk.restart()
    desk.read(line("d", 0, 10))
    desk.read(line("e", 1, 11), line("f", 2, 12))
    assert desk.lines() == ["a", "b", "c", "d", "e", "f"]


@pytest.mark.parametrize("restarts", [True, False], ids=["a gateway that starts anew", "one that reads on"])
def test_what_was_kept_back_since_before_the_wipe_hides_nothing(desk: Desk, restarts: bool) -> None:
    """A run says late what it noted while the bus was dying, or its clock is slow."""
    desk.read(*OLD)
    if restarts:
        desk.restart()
    desk.read(line("d", 0, 1))
    desk.read(line("e", 1, 11), line("f", 2, 12))
    assert desk.lines() == ["a", "b", "c", "d", "e", "f"]


def test_what_was_kept_back_hides_nothing_where_the_first_records_were_purged(desk: Desk) -> None:
    desk.read(*OLD)
    with writing(desk.engine) as sql:
        sql.execute(delete(job_records).where(job_records.c.pos < 2))
    desk.read(line("d", 0, 1))
    desk.read(line("e", 1, 11), line("f", 2, 12))
    assert sorted(desk.lines()) == ["c", "d", "e", "f"]
    assert desk.lines()[-2:] == ["e", "f"]


def test_a_topic_may_be_wiped_again(desk: Desk) -> None:
    desk.read(*OLD)
    desk.read(line("d", 0, 10), line("e", 1, 11))
    desk.read(line("f", 0, 20))
    assert desk.lines() == ["a", "b", "c", "d", "e", "f"]


def test_a_partition_that_had_lost_its_first_records_makes_way_too(desk: Desk) -> None:
    desk.read(*OLD)
    with writing(desk.engine) as sql:
        sql.execute(delete(job_records).where(job_records.c.pos < 2))
    desk.restart()
    desk.read(line("d", 0, 10))
    assert desk.lines() == ["c", "d"]


@pytest.mark.parametrize("restarts", [True, False], ids=["a gateway that starts anew", "one that reads on"])
def test_a_batch_that_comes_again_moves_nothing(desk: Desk, restarts: bool) -> None:
    desk.read(*OLD)
    if restarts:
        desk.restart()
    desk.read(*OLD[1:], line("d", 3, 3))
    assert desk.lines() == ["a", "b", "c", "d"]
    with desk.engine.connect() as sql:
        assert list(sql.scalars(select(job_records.c.pos).order_by(job_records.c.pos))) == [0, 1, 2, 3]


def test_a_repeat_of_what_was_purged_meanwhile_moves_nothing(desk: Desk) -> None:
    desk.read(*OLD)
    with writing(desk.engine) as sql:
        sql.execute(delete(job_records).where(job_records.c.pos == 1))
    desk.restart()
    desk.read(OLD[1])
    with desk.engine.connect() as sql:
        assert list(sql.scalars(select(job_records.c.pos).order_by(job_records.c.pos))) == [0, 1, 2]


def test_each_partition_is_its_own(desk: Desk) -> None:
    desk.read(*OLD, line("x", 0, 0, part=1))
    desk.read(line("d", 0, 10), line("y", 1, 11, part=1))
    assert desk.lines() == ["a", "b", "c", "d"]
    assert desk.lines(part=1) == ["x", "y"]
