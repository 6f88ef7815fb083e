"""Commands between the bus and their answers: in order for one artifact, several artifacts at once.

The bus shows its records one batch after the other, and to read a huge publication whole takes minutes. So a command is
written down, which lets the bus go on, and its row goes in the transaction that writes its answer: killed at any
instruction, it is still here or it was answered.

What still waits: a command waits for the earlier ones of its own artifact, and a publication for a free place among the
`PUBLISHES` at work. Aliases and deletions of other artifacts never wait for a publication. Several registries on one
database share the commands: each artifact is one registry's at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog
from sqlalchemy import Engine, delete, func, select

from services.registry.answers import answer_again
from services.registry.tables import inbox
from shared.bus.port import Poison, Record
from shared.contracts.artifacts import DeleteArtifact, PublishArtifact, SetAlias, artifact_key
from shared.contracts.message import decode
from shared.db import AWAY, insert_into, reading
from shared.db.locks import turn

log = structlog.get_logger("registry.inbox")

PUBLISHES = 4
LOOK_EVERY_S = 3.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 3.0
ELSEWHERE_S = 0.5
"""Before we look again at an artifact that another registry works on."""

Command = PublishArtifact | SetAlias | DeleteArtifact


class Inbox:
    """`commands` is for the bus; `run`, on a thread of its own, has everything handled that it brought."""

    def __init__(self, engine: Engine, handle: Callable[[Command], None], on_answers: Callable[[], None]) -> None:
        self._engine = engine
        self._handle = handle
        self._on_answers = on_answers
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._at_work: dict[str, Command] = {}
        """By artifact. Only `run` adds to it."""
        self._failures: dict[str, int] = {}
        """In a row, by artifact."""

    def commands(self, records: Sequence[Record]) -> None:
        """Once this returns, the commands are kept and the bus may forget them. Raises Poison."""
        with self._engine.begin() as connection:
            for record in records:
                command = record.message
                if not isinstance(command, Command):
                    raise Poison(record, f"{type(command).__name__} is no command to the registry")
                row = {
                    "id": command.id,
                    "key": _key(command),
                    "publishes": _publishes(command),
                    "command": command.encode(),
                }
                # First the row, which waits for whoever answers it just now, then the look: never both stay.
                connection.execute(insert_into(connection, inbox).values(row).on_conflict_do_nothing())
                if answer_again(connection, command.id):
                    connection.execute(delete(inbox).where(inbox.c.id == command.id))
        self._on_answers()
        self._wake.set()

    def run(self) -> None:
        """Until stopped; then the commands at work are finished."""
        with ThreadPoolExecutor(PUBLISHES + 1, thread_name_prefix="command") as workers:
            while not self._stopping.is_set():
                self._wake.clear()
                try:
                    for command in self._startable():
                        self._at_work[_key(command)] = command
                        workers.submit(self._work, command)
                except AWAY as error:
                    log.warning("inbox_waits", error=str(error))
                self._wake.wait(LOOK_EVERY_S)

    def stop(self) -> None:
        """What has not begun stays for the next start."""
        self._stopping.set()
        self._wake.set()

    def waiting(self) -> int:
        """How many commands have no answer yet."""
        with reading(self._engine) as connection:
            return connection.scalar(select(func.count()).select_from(inbox)) or 0

    def _startable(self) -> list[Command]:
        """The first command of every artifact that nobody works on, as far as there is room."""
        busy = dict(self._at_work)  # before the look: who ends meanwhile may still be in what it shows
        room = PUBLISHES - sum(map(_publishes, busy.values()))
        firsts = select(func.min(inbox.c.seq)).group_by(inbox.c.key)
        rows = (
            select(inbox.c.key, inbox.c.publishes, inbox.c.command).where(inbox.c.seq.in_(firsts)).order_by(inbox.c.seq)
        )
        startable: list[Command] = []
        with reading(self._engine) as connection:
            for key, publishes, raw in connection.execute(rows):
                if key in busy or (publishes and not room):
                    continue
                command = decode(raw)
                assert isinstance(command, Command)
                startable.append(command)
                room -= publishes
        return startable

    def _waits(self, command: Command) -> bool:
        """Whether nobody has answered it since we looked."""
        with reading(self._engine) as connection:
            return connection.scalar(select(inbox.c.seq).where(inbox.c.id == command.id)) is not None

    def _work(self, command: Command) -> None:
        """Handle it. Store or database away: it comes again after a pause, and its artifact waits meanwhile."""
        key = _key(command)
        try:
            with turn(self._engine, f"artifact {key}") as mine:
                if mine and self._waits(command):
                    self._handle(command)
            self._failures.pop(key, None)
            self._on_answers()
            if not mine:
                self._stopping.wait(ELSEWHERE_S)
        except Exception as error:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            log.warning("command_waits", key=key, failures=failures, error=str(error), exc_info=failures == 1)
            self._stopping.wait(min(FIRST_PAUSE_S * 2 ** min(failures, 10), LONGEST_PAUSE_S))
        finally:
            del self._at_work[key]
            self._wake.set()


def _key(command: Command) -> str:
    return artifact_key(command.tenant, command.name)


def _publishes(command: Command) -> bool:
    return isinstance(command, PublishArtifact)
