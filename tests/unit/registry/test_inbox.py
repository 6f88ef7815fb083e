"""Commands wait in the inbox until they are answered, and hold up nobody whom they need not."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, text

from services.registry import inbox as module
from services.registry.answers import write_answer
from services.registry.inbox import PUBLISHES, Command, Inbox
from shared.bus.port import Position, Record
from shared.contracts.artifacts import ArtifactKind, CommandDone, PublishArtifact, SetAlias
from shared.contracts.topics import REGISTRY_COMMANDS
from shared.db import open_database
from shared.store.port import StoreUnavailable
from tests.databases import NewDatabase, maker
from tests.waiting import eventually

Handle = Callable[[Command], None]


@pytest.fixture
def postgresql(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that has several writers at once."""
    return maker("postgresql", request, tmp_path)("registry")


def publication(name: str) -> PublishArtifact:
    return PublishArtifact(name=name, kind=ArtifactKind.report, staged_prefix="staging/x", publication_id=name)


def alias(name: str) -> SetAlias:
    return SetAlias(name=name, alias="production", version=1)


def records(commands: Sequence[Command]) -> list[Record]:
    return [
        Record(REGISTRY_COMMANDS, f"default/{command.name}", Position(0, offset), command)
        for offset, command in enumerate(commands)
    ]


def answering(engine: Engine) -> Handle:
    """A handler that has nothing else to do."""

    def handle(command: Command) -> None:
        with engine.begin() as connection:
            write_answer(connection, command.name, CommandDone(command_id=command.id))

    return handle


@contextmanager
def running(inbox: Inbox) -> Iterator[Inbox]:
    thread = threading.Thread(target=inbox.run)
    thread.start()
    try:
        yield inbox
    finally:
        inbox.stop()
        thread.join()


def test_a_command_that_is_repeated_while_it_is_answered_stays_answered(postgresql: str) -> None:
    engine = open_database(postgresql)
    inbox = Inbox(engine, answering(engine), lambda: None)
    repeated = records([alias("m")])
    inbox.commands(repeated)
    with engine.begin() as worker:
        write_answer(worker, "m", CommandDone(command_id=repeated[0].message.id))  # type: ignore[union-attr]
        arriving = threading.Thread(target=inbox.commands, args=(repeated,))
        arriving.start()
        waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        eventually(lambda: worker.scalar(waits), what="its second arrival to wait for the first's answer")
    arriving.join()
    assert inbox.waiting() == 0
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM outbox_answers")) == 2, "both arrivals are answered"


def test_a_command_that_was_answered_is_answered_again_and_not_handled(new_database: NewDatabase) -> None:
    engine = open_database(new_database("registry"))
    inbox = Inbox(engine, answering(engine), lambda: None)
    command = alias("m")
    inbox.commands(records([command]))
    answering(engine)(command)
    inbox.commands(records([command, command]))
    assert inbox.waiting() == 0
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM outbox_answers")) == 3


@pytest.mark.parametrize("make", [publication, alias])
def test_commands_that_fail_for_ever_hold_up_no_other_artifact(
    new_database: NewDatabase, make: Callable[[str], Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = PUBLISHES
    monkeypatch.setattr(module, "OTHERS", failing)
    engine = open_database(new_database("registry"))
    answer, failed = answering(engine), set[str]()

    def handle(command: Command) -> None:
        if command.name.startswith("bad"):
            failed.add(command.name)
            raise StoreUnavailable("away")
        answer(command)

    inbox = Inbox(engine, handle, lambda: None)
    inbox.commands(records([make(f"bad-{number}") for number in range(failing)]))
    with running(inbox):
        eventually(lambda: len(failed) == failing, what="all that fail to have failed")
        inbox.commands(records([make(f"good-{number}") for number in range(3)]))
        eventually(lambda: inbox.waiting() == failing, what="the answers to the others")


def test_a_command_that_failed_is_tried_again_after_a_pause_without_looking_all_the_time(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 60)
    engine = open_database(new_database("registry"))
    statements = list[str]()
    event.listen(engine, "before_cursor_execute", lambda *words: statements.append(words[2]))
    answer, tries = answering(engine), list[str]()

    def handle(command: Command) -> None:
        tries.append(command.id)
        if len(tries) < 3:
            raise StoreUnavailable("away")
        answer(command)

    inbox = Inbox(engine, handle, lambda: None)
    first, second = alias("m"), alias("m")
    inbox.commands(records([first, second]))
    with running(inbox):
        eventually(lambda: not inbox.waiting())
    assert tries == [first.id, first.id, first.id, second.id], "its artifact waits meanwhile"
    assert len([each for each in statements if each.startswith("SELECT inbox.seq, inbox.key")]) < 40


def test_a_second_registry_starts_what_the_first_has_no_place_for(postgresql: str) -> None:
    engines = [open_database(postgresql) for _ in range(2)]
    answer, go_on, at_work = answering(engines[0]), threading.Event(), list[str]()

    def work_long(command: Command) -> None:
        at_work.append(command.name)
        go_on.wait(60)
        answer(command)

    first, second = Inbox(engines[0], work_long, lambda: None), Inbox(engines[1], answering(engines[1]), lambda: None)
    first.commands(records([publication(f"m{number}") for number in range(PUBLISHES + 2)]))
    try:
        with running(first):
            eventually(lambda: len(at_work) == PUBLISHES)
            with running(second):
                eventually(lambda: first.waiting() == PUBLISHES, what="the second's answers to the other two")
            assert len(at_work) == PUBLISHES
            go_on.set()
            eventually(lambda: not first.waiting())
    finally:
        go_on.set()


def test_of_a_burst_every_command_is_read_once(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    engine = open_database(maker("sqlite", request, tmp_path)("registry"))
    inbox = Inbox(engine, answering(engine), lambda: None)
    burst = [make(f"m{number}") for number in range(30) for make in (publication, alias)]
    inbox.commands(records(burst))
    read = list[int]()

    @event.listens_for(engine, "before_cursor_execute")
    def note(_: object, __: object, statement: str, numbers: Sequence[int], *___: object) -> None:
        if statement.startswith("SELECT inbox.command"):
            read.extend(numbers)

    with running(inbox):
        eventually(lambda: not inbox.waiting(), 30)
    assert sorted(read) == list(range(1, len(burst) + 1))


def test_a_command_that_fails_again_and_again_is_logged_once_and_so_is_its_success(
    new_database: NewDatabase, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.1)
    engine = open_database(new_database("registry"))
    caplog.set_level(logging.INFO)
    answer, tries = answering(engine), list[str]()

    def handle(command: Command) -> None:
        tries.append(command.id)
        if len(tries) < 5:
            raise StoreUnavailable("away")
        answer(command)

    inbox = Inbox(engine, handle, lambda: None)
    inbox.commands(records([alias("m")]))
    caplog.clear()
    with running(inbox):
        eventually(lambda: "the command about default/m works again" in caplog.messages)
    assert caplog.messages == [
        "the command about default/m waits, and is tried again until it works: away",
        "the command about default/m works again",
    ]
