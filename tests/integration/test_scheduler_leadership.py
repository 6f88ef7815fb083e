"""Leadership by PostgreSQL: one leads, however its predecessor went, and nobody writes who was deposed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from services.scheduler import advisory
from services.scheduler.advisory import AdvisoryLeadership
from services.scheduler.truth import Deposed, Truth, take_over
from shared.db import open_database
from shared.settings import SettingsError
from tests.databases import maker
from tests.postgres_server import PostgresServer
from tests.waiting import eventually


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return maker("postgresql", request, tmp_path)("scheduler")


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = open_database(url)
    yield engine
    engine.dispose()


class Waiting:
    """A scheduler that waits to lead."""

    def __init__(self, engine: Engine) -> None:
        self.leadership = AdvisoryLeadership(engine)
        self.stopping = Stopping()
        self.leads: bool | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.leads = self.leadership.acquire(self.stopping)

    def end(self) -> None:
        self.stopping.told.set()
        self._thread.join(10)
        self.leadership.release()


class Stopping:
    def __init__(self) -> None:
        self.told = threading.Event()
        self.looked = 0

    def wait(self, timeout_s: float, /) -> bool:
        self.looked += 1
        return self.told.wait(timeout_s)


def leading(engine: Engine) -> AdvisoryLeadership:
    leadership = AdvisoryLeadership(engine)
    assert leadership.acquire(Stopping())
    return leadership


def test_a_second_scheduler_stands_by_until_the_first_lets_go(engine: Engine, url: str) -> None:
    first, second = leading(engine), Waiting(open_database(url))
    eventually(lambda: second.stopping.looked > 2)
    assert first.held()
    assert second.leads is None
    first.release()
    assert not first.held()
    eventually(lambda: second.leads)
    assert second.leadership.held()
    second.end()


def test_who_stands_by_stops_when_it_is_told_to(engine: Engine, url: str) -> None:
    first, second = leading(engine), Waiting(open_database(url))
    eventually(lambda: second.stopping.looked)
    second.end()
    assert second.leads is False
    first.release()


def test_a_lost_connection_is_a_lost_leadership(engine: Engine, postgres: PostgresServer) -> None:
    leadership = leading(engine)
    postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{engine.url.database}'")
    eventually(lambda: not leadership.held())
    leadership.release()
    assert leadership.acquire(Stopping())
    assert leadership.held()
    leadership.release()


def test_a_leader_that_says_nothing_any_more_is_followed_after_it_has_given_up(
    engine: Engine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when its host vanished, or something between still holds the connection: nothing is ever closed."""
    monkeypatch.setattr(advisory, "LEASE_S", 0.5)
    monkeypatch.setattr(advisory, "SILENT_S", 1.0)
    monkeypatch.setattr(advisory, "CONFIRM_S", 3600.0)
    frozen, second = leading(engine), Waiting(open_database(url))
    eventually(lambda: not frozen.held())
    assert second.leads is None
    eventually(lambda: second.leads)
    second.end()
    frozen.release()


def test_a_leader_that_answers_is_not_taken_for_silent(
    engine: Engine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advisory, "CONFIRM_S", 0.1)
    monkeypatch.setattr(advisory, "SILENT_S", 3.0)
    monkeypatch.setattr(advisory, "POLL_S", 0.05)
    first, second = leading(engine), Waiting(open_database(url))
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > 4, 20)
    assert first.held()
    assert second.leads is None
    second.end()
    first.release()


def test_wrong_credentials_end_the_wait_with_a_sentence(engine: Engine, postgres: PostgresServer) -> None:
    wrong = open_database(postgres.url(str(engine.url.database), password="wrong"))
    with pytest.raises(SettingsError, match=r"LLMOS_DB_URL.*authentication failed") as refused:
        AdvisoryLeadership(wrong).acquire(Stopping())
    assert "wrong" not in str(refused.value)


def test_a_write_that_was_begun_before_a_takeover_is_whole_and_one_after_it_is_none(engine: Engine, url: str) -> None:
    """The fence under READ COMMITTED: who takes over waits for the write at hand; who comes later finds the epoch."""
    old = Truth(engine, take_over(engine))
    epochs: list[int] = []
    other = open_database(url)
    taking = threading.Thread(target=lambda: epochs.append(take_over(other)))
    with old.writing() as connection:
        taking.start()
        waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        eventually(lambda: connection.execute(waits).scalar())
        assert not epochs
    taking.join(10)
    assert epochs == [old.epoch + 1]
    with pytest.raises(Deposed), old.writing():
        pytest.fail("it wrote")


def test_a_write_that_waits_for_a_takeover_finds_itself_deposed(engine: Engine, url: str) -> None:
    old, found = Truth(engine, take_over(engine)), list[BaseException]()

    def write() -> None:
        try:
            with old.writing():
                pass
        except Deposed as error:
            found.append(error)

    writing = threading.Thread(target=write)
    with open_database(url).begin() as connection:
        connection.execute(text("UPDATE leader SET epoch = epoch + 1"))
        writing.start()
        waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        eventually(lambda: connection.execute(waits).scalar())
    writing.join(10)
    assert len(found) == 1
