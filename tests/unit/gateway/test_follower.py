"""What the view keeps while a topic is empty, and what it lets go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from services.gateway.sql import writing
from services.gateway.tables import jobs
from services.gateway.view import saving
from services.gateway.view.follower import Follower
from shared.bus.memory import MemoryBus, MemoryServer
from shared.bus.port import Record
from shared.contracts.jobs import JobSpec, JobState, JobStatus
from shared.contracts.topics import JOBS_STATE
from shared.contracts.whole import WHOLE, TableWhole
from shared.db import migrate, open_database
from tests.waiting import eventually

AGO = datetime.now(UTC) - timedelta(hours=1)
ONE, OTHER, NEW = "one", "other", "new"


def state(job_id: str) -> JobState:
    return JobState(job_id=job_id, version=1, spec=JobSpec(type="probe"), status=JobStatus.queued, created_at=AGO)


class World:
    """A database that outlives buses and followers."""

    def __init__(self, folder: Path) -> None:
        self.engine: Engine = open_database(f"sqlite:///{folder / 'gateway.sqlite'}")
        migrate(self.engine, "services.gateway.migrations")
        self.server = MemoryServer()

    def publish(self, *job_ids: str) -> None:
        for job_id in job_ids:
            self._put(job_id, state(job_id))

    def delete(self, job_id: str) -> None:
        self._put(job_id, None)

    def say_whole(self, as_of: datetime | None = None) -> None:
        self._put(WHOLE, TableWhole(as_of=as_of or datetime.now(UTC)))

    def take_its_word_back(self) -> None:
        self._put(WHOLE, None)

    def wipe(self) -> None:
        self.server = MemoryServer()

    def known(self) -> set[str]:
        with self.engine.connect() as sql:
            return set(sql.scalars(select(jobs.c.job_id)))

    @contextmanager
    def follower(self) -> Iterator[Follower]:
        """Caught up, until the block ends."""
        bus = MemoryBus(self.server)
        follower = Follower(self.engine, JOBS_STATE, saving.save_jobs, saving.sweep_jobs, _ignore)
        follower.start(bus)
        try:
            assert follower.caught_up.wait(30)
            yield follower
        finally:
            follower.stop()
            bus.close()

    def _put(self, key: str, message: JobState | TableWhole | None) -> None:
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


def test_a_wiped_topic_deletes_nothing_while_its_owner_has_not_spoken(world: World) -> None:
    world.wipe()
    with world.follower():
        assert world.known() == {ONE, OTHER}


def test_a_topic_that_is_only_being_filled_deletes_nothing(world: World) -> None:
    world.wipe()
    world.publish(ONE)
    with world.follower():
        assert world.known() == {ONE, OTHER}
        world.publish(OTHER)
        world.say_whole()
        world.publish(NEW)
        eventually(lambda: NEW in world.known())
        assert world.known() == {ONE, OTHER, NEW}


def test_what_was_deleted_while_nobody_followed_goes_at_the_next_start(world: World) -> None:
    world.delete(OTHER)
    world.say_whole()
    with world.follower():
        assert world.known() == {ONE}


def test_what_was_deleted_goes_once_the_owner_has_filled_a_wiped_topic(world: World) -> None:
    world.wipe()
    with world.follower():
        world.publish(ONE)
        world.say_whole()
        eventually(lambda: world.known() == {ONE})


def test_each_new_word_of_the_owner_is_heeded(world: World) -> None:
    world.say_whole()
    with world.follower():
        assert world.known() == {ONE, OTHER}
        with writing(world.engine) as sql:
            saving.save_job(sql, state("stray"))  # one whose tombstone went by unheard
        world.say_whole()
        eventually(lambda: world.known() == {ONE, OTHER})


def test_a_word_that_is_older_than_a_row_says_nothing_of_it(world: World) -> None:
    """A bus that was restored from an old copy has its old word on it."""
    world.wipe()
    world.publish(ONE)
    world.say_whole(as_of=AGO - timedelta(hours=1))
    with world.follower():
        assert world.known() == {ONE, OTHER}


def test_an_owner_that_takes_its_word_back_keeps_the_rows(world: World) -> None:
    world.say_whole()
    world.take_its_word_back()
    world.delete(OTHER)
    with world.follower():
        assert world.known() == {ONE, OTHER}
