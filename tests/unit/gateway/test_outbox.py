"""Submissions: one for one key, published until they are through, in order about one subject."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NoReturn

import orjson
import pytest
from sqlalchemy import Engine, select, update
from sqlalchemy.exc import OperationalError

from services.gateway import outbox
from services.gateway import submissions as accepting_module
from services.gateway.errors import Conflict, Unavailable
from services.gateway.submissions import Asked, Order, Submissions
from services.gateway.tables import submissions
from services.gateway.view.saving import save_jobs
from shared.bus.memory import MemoryBus
from shared.bus.port import Position, Record
from shared.contracts.artifacts import SetAlias
from shared.contracts.jobs import CancelJob, JobSpec, JobState, JobStatus, SubmitJob
from shared.contracts.message import Message, decode
from shared.contracts.topics import JOBS_COMMANDS, JOBS_STATE, REGISTRY_COMMANDS, Topic
from shared.db import open_database
from shared.settings import Settings
from tests.databases import NewDatabase
from tests.waiting import eventually


@pytest.fixture
def engine(new_database: NewDatabase) -> Engine:
    return open_database(new_database("gateway"))


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


def cancel(job_id: str) -> Order:
    return Order(JOBS_COMMANDS, job_id, job_id, CancelJob(job_id=job_id), until="published")


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
    command_id = accepting.accept(asked(), cancel("job-1")).command_id
    assert accepting.outcome(command_id) == (False, None)
    assert accepting.outbox.oldest_unpublished() is not None
    bus.away = False
    accepting.start()
    eventually(lambda: accepting.outcome(command_id) == (True, None))
    assert accepting.outbox.oldest_unpublished() is None
    accepting.stop()


def written_by_a_newer_gateway(engine: Engine, command_id: str, **changes: object) -> None:
    """In the place of what we wrote."""
    with engine.begin() as sql:
        sql.execute(update(submissions).where(submissions.c.command_id == command_id).values(**changes))


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("CancelJob", id="a field that we do not know"),
        pytest.param("Sing", id="a type that we do not know"),
    ],
)
def test_what_a_newer_gateway_wrote_is_published_as_it_is(engine: Engine, bus: MemoryBus, kind: str) -> None:
    bus.away = True
    accepting = Submissions(engine, bus, Settings())
    command = CancelJob(job_id="job-1")
    accepting.accept(asked(), Order(JOBS_COMMANDS, "job-1", "job-1", command, until="published"))
    envelope = orjson.loads(command.encode())
    raw = orjson.dumps({**envelope, "type": kind, "body": {"job_id": "job-1", "song": "blue"}})
    written_by_a_newer_gateway(engine, command.id, command=raw)
    bus.away = False
    accepting.start()
    eventually(lambda: accepting.outcome(command.id) == (True, None))
    accepting.stop()
    assert [record.raw for record in bus.server.logs["jobs.commands"].records] == [raw]


def test_a_topic_that_only_a_newer_gateway_knows_is_left_to_it_and_holds_up_nothing(
    engine: Engine, bus: MemoryBus
) -> None:
    bus.away = True
    accepting = Submissions(engine, bus, Settings())
    newer = accepting.accept(asked("newer"), cancel("job-1")).command_id
    written_by_a_newer_gateway(engine, newer, topic="songs.commands")
    command_id = accepting.accept(asked("ours"), cancel("job-2")).command_id
    bus.away = False
    accepting.start()
    eventually(lambda: accepting.outcome(command_id) == (True, None))
    accepting.stop()
    with engine.connect() as sql:
        still = select(submissions.c.tries, submissions.c.published_at).where(submissions.c.command_id == newer)
        assert sql.execute(still).one() == (0, None)


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


class Silent(MemoryBus):
    """Takes messages, and says nothing of the first ones."""

    def __init__(self) -> None:
        super().__init__()
        self.unanswered = 2

    def publish(self, topic: Topic, key: str, message: Message | None) -> Future[Position]:
        self.unanswered -= 1
        return Future() if self.unanswered >= 0 else super().publish(topic, key, message)


def test_what_had_its_effect_is_through_though_a_kill_kept_its_publication_from_being_written_down(
    engine: Engine, bus: MemoryBus
) -> None:
    spec = JobSpec(type="probe", name="x")
    killed = Submissions(engine, bus, Settings())
    submit = SubmitJob(job_id="job-1", spec=spec)
    killed.accept(asked(), Order(JOBS_COMMANDS, "job-1", "job-1", submit, until="seen"))
    shown = JobState(job_id="job-1", version=1, spec=spec, status=JobStatus.queued, created_at=datetime.now(UTC))
    with engine.begin() as sql:
        save_jobs(sql, [Record(JOBS_STATE, "job-1", Position(0, 0), shown)])
    another = Submissions(engine, bus, Settings(max_unpublished=1))
    assert another.outbox.oldest_unpublished() is None
    another.accept(asked(body="other"), cancel("job-1"))
    assert [type(one) for one in published(bus, "jobs.commands")] == [SubmitJob, CancelJob]


def test_many_that_wait_for_one_answer_leave_room_for_the_rest(
    engine: Engine, bus: MemoryBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "AT_ONCE", 2)
    accepting = Submissions(engine, bus, Settings())
    for version in range(1, 5):
        accepting.accept(asked(), alias(version))
    bus.away = True
    command_id = accepting.accept(asked(), cancel("job-1")).command_id
    bus.away = False
    accepting.start()
    eventually(lambda: accepting.outcome(command_id) == (True, None))
    accepting.stop()
    assert {one.version for one in published(bus, "registry.commands")} == {1}  # type: ignore[attr-defined]


class Contended(deque[str]):
    """Another thread takes one just after we counted."""

    def __len__(self) -> int:
        counted = super().__len__()
        if counted:
            self.popleft()
        return counted


def test_requests_at_once_share_what_the_bus_has_taken(
    engine: Engine, bus: MemoryBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepting = Submissions(engine, bus, Settings())
    monkeypatch.setattr(accepting.outbox, "_taken", Contended(["for another", "for us"]))
    with accepting.outbox.taken() as ids:
        assert ids in (["for us"], ["for another", "for us"])


def test_a_bus_that_never_answers_does_not_end_the_outbox(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "PUBLISH_TIMEOUT_S", 0.01)
    monkeypatch.setattr(outbox, "RETRY_S", 0.01)
    monkeypatch.setattr(accepting_module, "FIRST_REPEAT", timedelta(0))
    accepting = Submissions(engine, Silent(), Settings())
    command_id = accepting.accept(asked(), cancel("job-1")).command_id
    accepting.start()
    eventually(lambda: accepting.outcome(command_id) == (True, None))
    accepting.stop()


def test_a_retry_joins_its_first_try_whichever_is_committed_first(engine: Engine, bus: MemoryBus) -> None:
    accepting = Submissions(engine, bus, Settings())
    first, other = asked(), asked()
    retry = replace(asked(), retried=True)
    made = accepting.accept(retry, alias(1))
    assert not made.joined
    overtaken = accepting.accept(first, alias(1))
    assert (overtaken.command_id, overtaken.joined) == (made.command_id, True)
    assert not accepting.accept(other, alias(1)).joined, "one retry stands for one first try"
    assert accepting.accept(replace(asked(), retried=True), alias(1)).joined


def test_two_requests_alike_are_two(engine: Engine, bus: MemoryBus) -> None:
    accepting = Submissions(engine, bus, Settings())
    accepting.accept(replace(asked(), retried=True), alias(1))
    assert not accepting.accept(asked(), alias(1)).joined


def test_a_command_goes_on_with_its_requests_trace(engine: Engine, bus: MemoryBus) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    accepting = Submissions(engine, bus, Settings())
    accepting.accept(replace(asked(), traceparent=trace), alias(1))
    assert [one.traceparent for one in published(bus, "registry.commands")] == [trace]  # type: ignore[attr-defined]
    with engine.begin() as sql:
        assert decode(sql.execute(select(submissions.c.command)).scalar_one()).traceparent == trace


def test_its_end_is_in_order_where_the_database_takes_nothing_more(
    engine: Engine, bus: MemoryBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    died: list[object] = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    accepting = Submissions(engine, bus, Settings())
    tried = threading.Event()

    def full(_: Engine) -> NoReturn:
        tried.set()
        raise OperationalError("INSERT", {}, Exception("database or disk is full"))

    accepting.accept(asked(), alias(1))
    with monkeypatch.context() as patch:
        patch.setattr(outbox, "writing", full)
        accepting.start()
        accepting.stop()
    assert tried.is_set()
    assert died == []
    accepting.outbox._write_down()
    with engine.connect() as sql:
        assert sql.execute(select(submissions.c.published_at)).scalar_one() is not None


def test_a_bus_that_is_away_is_logged_once_and_so_is_its_return(
    engine: Engine, bus: MemoryBus, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "RETRY_S", 0.01)
    pings, ping = list[int](), bus.ping

    def counted() -> None:
        pings.append(1)
        ping()

    monkeypatch.setattr(bus, "ping", counted)
    bus.away = True
    accepting = Submissions(engine, bus, Settings())
    command_id = accepting.accept(asked(), cancel("job-1")).command_id
    caplog.clear()
    caplog.set_level(logging.INFO, "gateway.outbox")
    accepting.start()
    eventually(lambda: len(pings) >= 4)
    bus.away = False
    eventually(lambda: accepting.outcome(command_id) == (True, None))
    accepting.stop()
    said = [record.getMessage() for record in caplog.records if record.name == "gateway.outbox"]
    assert [line for line in said if "the outbox" in line] == [
        "the outbox waits, and is tried again until it works: the bus is away",
        "the outbox works again",
    ]
