"""What the view keeps while a topic is empty, and what it lets go."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, select

from services.gateway.sql import writing
from services.gateway.tables import jobs
from services.gateway.view import saving
from services.gateway.view.follower import AT_ONCE, MOST_WAITING, Follower
from shared.bus.memory import MemoryBus, MemoryServer
from shared.bus.port import Record
from shared.contracts.bookmarks import BOOKMARK, TableBookmark
from shared.contracts.jobs import JobSpec, JobState, JobStatus
from shared.contracts.topics import JOBS_STATE
from shared.db import migrate, open_database
from tests.waiting import eventually

AT = datetime(2030, 1, 1, tzinfo=UTC)
ONE, OTHER, NEW = "one", "other", "new"


def state(job_id: str) -> JobState:
    return JobState(job_id=job_id, version=1, spec=JobSpec(type="probe"), status=JobStatus.queued, created_at=AT)


class World:
    """A database that outlives buses and followers. A reading begins in the middle of `minute`."""

    def __init__(self, folder: Path) -> None:
        self.engine: Engine = open_database(f"sqlite:///{folder / 'gateway.sqlite'}")
        migrate(self.engine, "services.gateway.migrations")
        self.server = MemoryServer()
        self.minute = 10

    def publish(self, *job_ids: str) -> None:
        for job_id in job_ids:
            self._put(job_id, state(job_id))

    def delete(self, job_id: str) -> None:
        self._put(job_id, None)

    def bookmark(self, since: int, until: int) -> None:
        """As an owner that has seen the table complete from one minute to another."""
        minute = timedelta(minutes=1)
        self._put(BOOKMARK, TableBookmark(complete_since=AT + since * minute, complete_until=AT + until * minute))

    def wipe(self) -> None:
        self.server = MemoryServer()

    def known(self) -> set[str]:
        with self.engine.connect() as sql:
            return set(sql.scalars(select(jobs.c.job_id)))

    def known_by_now(self) -> set[str]:
        """Once everything that is on the topic was written, and what followed from it was done."""
        for passing in ("passing", "passing too"):
            self.publish(passing)
            self._until(there=passing)
            self.delete(passing)
            self._until(gone=passing)
        return self.known()

    @contextmanager
    def follower(self) -> Iterator[Follower]:
        """Caught up, until the block ends."""
        bus = MemoryBus(self.server)
        follower = Follower(
            self.engine,
            JOBS_STATE,
            saving.save_jobs,
            saving.sweep_jobs,
            _ignore,
            now=lambda: AT + timedelta(minutes=self.minute, seconds=30),
        )
        follower.start(bus)
        try:
            assert follower.caught_up.wait(30)
            yield follower
        finally:
            follower.stop()
            bus.close()

    def _until(self, there: str = "", gone: str = "") -> None:
        eventually(lambda: (not there or there in self.known()) and gone not in self.known())

    def _put(self, key: str, message: JobState | TableBookmark | None) -> None:
        bus = MemoryBus(self.server)
        bus.publish(JOBS_STATE, key, message).result()
        bus.close()


def _ignore(_: Sequence[Record]) -> None: ...


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.publish(ONE, OTHER)
    with world.follower():
        eventually(lambda: world.known() == {ONE, OTHER})
    yield world
    world.engine.dispose()


def test_a_wiped_topic_deletes_nothing_while_its_owner_is_away(world: World) -> None:
    world.wipe()
    with world.follower():
        assert world.known_by_now() == {ONE, OTHER}


def test_a_topic_that_is_only_being_filled_deletes_nothing(world: World) -> None:
    world.wipe()
    world.publish(ONE)
    with world.follower():
        world.publish(OTHER)
        world.bookmark(11, 11)
        world.bookmark(11, 12)
        assert world.known_by_now() == {ONE, OTHER}


def test_what_was_deleted_while_nobody_followed_goes_once_the_owner_has_looked_again(world: World) -> None:
    world.delete(OTHER)
    world.bookmark(1, 9)
    with world.follower():
        world.bookmark(1, 10)  # the owner may have looked before the reading began
        assert world.known_by_now() == {ONE, OTHER}
        world.bookmark(1, 11)
        eventually(lambda: world.known() == {ONE})


def test_a_bookmark_that_is_on_a_topic_with_lost_keys_deletes_nothing(world: World) -> None:
    """It lies in one partition and speaks of all; another may have lost what it had."""
    world.wipe()
    world.publish(ONE)
    world.bookmark(1, 9)
    with world.follower():
        assert world.known_by_now() == {ONE, OTHER}
        world.publish(OTHER)  # the owner has noticed
        world.bookmark(12, 12)
        world.bookmark(12, 13)
        assert world.known_by_now() == {ONE, OTHER}


def test_what_comes_again_while_the_owner_looks_is_kept(world: World) -> None:
    world.wipe()
    world.publish(ONE)
    world.bookmark(1, 9)
    with world.follower():
        world.publish(OTHER, NEW)
        world.bookmark(1, 11)
        world.delete(NEW)
        eventually(lambda: world.known() == {ONE, OTHER})


def test_what_was_deleted_goes_once_the_owner_has_filled_a_wiped_topic(world: World) -> None:
    world.wipe()
    with world.follower():
        world.publish(ONE)
        world.minute = 12
        world.bookmark(11, 11)
        world.bookmark(11, 12)
        world.bookmark(11, 13)
        eventually(lambda: world.known() == {ONE})


def test_a_gap_in_the_bookmarks_has_the_topic_read_again(world: World) -> None:
    world.bookmark(1, 9)
    with world.follower() as follower:
        world.bookmark(1, 11)
        with writing(world.engine) as sql:
            saving.save_job(sql, state("stray"))  # one whose tombstone went by unheard
        world.minute = 20
        world.bookmark(18, 19)
        eventually(lambda: follower.readings == 2)
        world.bookmark(18, 21)
        eventually(lambda: world.known() == {ONE, OTHER})


def test_bookmarks_without_a_gap_cost_no_reading(world: World) -> None:
    world.bookmark(1, 9)
    with world.follower() as follower:
        for minute in range(10, 30):
            world.bookmark(1, minute)
        world.known_by_now()
        assert follower.readings == 1


def test_a_bookmark_that_is_older_than_a_row_says_nothing_of_it(world: World) -> None:
    """A bus that was restored from an old copy has its old bookmark on it."""
    world.wipe()
    world.publish(ONE)
    world.bookmark(-60, -50)
    with world.follower():
        world.bookmark(-60, 11)
        assert world.known_by_now() == {ONE, OTHER}


def test_the_bus_waits_while_sql_is_slower_so_that_memory_is_bounded(tmp_path: Path) -> None:
    world = World(tmp_path)
    many = [f"job-{number}" for number in range(MOST_WAITING + 2 * AT_ONCE)]
    may_write, most = threading.Event(), 0

    def save(sql: Connection, records: Sequence[Record]) -> None:
        nonlocal most
        most = max(most, follower.waiting)
        may_write.wait(20)
        saving.save_jobs(sql, records)

    follower = Follower(world.engine, JOBS_STATE, save, saving.sweep_jobs, lambda _: None)
    bus = MemoryBus(world.server)
    follower.start(bus)
    world.publish(*many)
    eventually(lambda: follower.waiting == MOST_WAITING)
    may_write.set()
    eventually(lambda: world.known() == set(many), 30)
    assert most <= MOST_WAITING
    follower.stop()
    bus.close()
