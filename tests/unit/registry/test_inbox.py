"""Commands wait in the inbox until they are answered, and hold up nobody whom they need not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from services.registry.answers import write_answer
from services.registry.inbox import Command, Inbox
from shared.bus.port import Position, Record
from shared.contracts.artifacts import ArtifactKind, CommandDone, PublishArtifact, SetAlias
from shared.contracts.topics import REGISTRY_COMMANDS
from shared.db import open_database
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
