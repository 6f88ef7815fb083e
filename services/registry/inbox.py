"""Commands between the bus and their answers: in order for one artifact, several artifacts at once.

The bus shows its records one batch after the other, and to read a huge publication whole takes minutes. So a command is
written down, which lets the bus go on, and its row goes in the transaction that writes its answer: killed at any
instruction, it is still here or it was answered.

What still waits: a command waits for the earlier ones of its own artifact, and a publication for a free place among the
`PUBLISHES` at work. Aliases and deletions of other artifacts never wait for a publication. Several registries on one
database share the commands: each artifact is one registry's at a time. What failed, or is at work in another registry,
is tried again after a pause, in which it takes up no place.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Connection, Engine, delete, func, select

from services.registry.answers import answer_again
from services.registry.tables import inbox
from shared.bus.port import Poison, Record
from shared.contracts.artifacts import DeleteArtifact, PublishArtifact, SetAlias, artifact_key
from shared.contracts.message import decode
from shared.db import AWAY, insert_into, reading
from shared.db.locks import turn
from shared.outage import Outage

log = logging.getLogger("registry.inbox")

PUBLISHES = 4
OTHERS = 32
"""Aliases and deletions that are handed to the workers and wait for a free one: they are short."""
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
        self._outages: dict[str, Outage] = {}
        """Of the artifacts whose command failed last."""
        self._outage = Outage(log, "the inbox")
        self._not_before: dict[str, float] = {}
        """Artifacts that have a pause, and until when. Only `run` takes from it."""

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
                    self._outage.ended()
                except AWAY as error:
                    self._outage.began(error)
                self._wake.wait(self._pause_s())

    def stop(self) -> None:
        """What has not begun stays for the next start."""
        self._stopping.set()
        self._wake.set()

    def waiting(self) -> int:
        """How many commands have no answer yet."""
        with reading(self._engine) as connection:
            return connection.scalar(select(func.count()).select_from(inbox)) or 0

    def _startable(self) -> list[Command]:
        """The first command of every artifact that nobody works on and that has no pause, as far as there is room."""
        busy = dict(self._at_work)  # before the look: who ends meanwhile may still be in what it shows
        passed = busy.keys() | self._pausing()
        publishing = sum(map(_publishes, busy.values()))
        places = {True: PUBLISHES - publishing, False: OTHERS - (len(busy) - publishing)}
        with reading(self._engine) as connection:
            chosen = [seq for kind, room in places.items() for seq in _firsts(connection, kind, room, passed)]
            if not chosen:
                return []
            rows = select(inbox.c.command).where(inbox.c.seq.in_(chosen)).order_by(inbox.c.seq)
            return [_decoded(raw) for raw in connection.scalars(rows)]

    def _pausing(self) -> set[str]:
        """The artifacts whose pause goes on; the other pauses are forgotten."""
        now = time.monotonic()
        for key in [key for key, until in dict(self._not_before).items() if until <= now]:
            del self._not_before[key]
        return set(self._not_before)

    def _pause_s(self) -> float:
        """Until the next look, which is due when the first pause is over."""
        first = min(dict(self._not_before).values(), default=math.inf)
        return max(0.0, min(LOOK_EVERY_S, first - time.monotonic()))

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
            if outage := self._outages.pop(key, None):
                outage.ended()
            self._on_answers()
            if not mine:
                self._pause(key, ELSEWHERE_S)
        except Exception as error:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            outage = self._outages.setdefault(key, Outage(log, f"the command about {key}"))
            outage.began(error, exc_info=True)
            self._pause(key, min(FIRST_PAUSE_S * 2 ** min(failures, 10), LONGEST_PAUSE_S))
        finally:
            del self._at_work[key]  # after the pause is set: `run` must find one of the two
            self._wake.set()

    def _pause(self, key: str, pause_s: float) -> None:
        self._not_before[key] = time.monotonic() + pause_s


def _firsts(connection: Connection, publishes: bool, room: int, passed: Collection[str]) -> list[int]:
    """The numbers of the oldest commands of one kind that are their artifact's first, as many as there is room for."""
    if not room:
        return []
    firsts = select(func.min(inbox.c.seq)).group_by(inbox.c.key)
    rows = select(inbox.c.seq, inbox.c.key).where(inbox.c.seq.in_(firsts), inbox.c.publishes.is_(publishes))
    oldest = connection.execute(rows.order_by(inbox.c.seq).limit(len(passed) + room))
    return [seq for seq, key in oldest if key not in passed][:room]


def _decoded(raw: bytes) -> Command:
    command = decode(raw)
    assert isinstance(command, Command)
    return command


def _key(command: Command) -> str:
    return artifact_key(command.tenant, command.name)


def _publishes(command: Command) -> bool:
    return isinstance(command, PublishArtifact)
