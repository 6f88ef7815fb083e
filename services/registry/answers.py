"""What a finished command leaves in the same transaction: its answer, and the states that the bus is to show."""

from __future__ import annotations

import time
from collections.abc import Iterable

from sqlalchemy import Connection, delete, insert, select

from services.registry.tables import answers, inbox, outbox_answers, outbox_states
from shared.contracts.artifacts import CommandDone, CommandRejected
from shared.db import insert_into

KEPT_S = 14 * 24 * 3600
"""Twice as long as the bus keeps a command."""

Answer = CommandDone | CommandRejected


def write_answer(connection: Connection, key: str, answer: Answer) -> None:
    """The command was handled, and is in the inbox no longer; it is answered with this for ever."""
    now, raw = time.time(), answer.encode()
    connection.execute(insert(answers).values(id=answer.command_id, at=now, key=key, answer=raw))
    connection.execute(insert(outbox_answers).values(key=key, answer=raw, since=now))
    connection.execute(delete(inbox).where(inbox.c.id == answer.command_id))


def answer_again(connection: Connection, command_id: str) -> bool:
    """Whether the command was handled before. Then its answer is sent once more."""
    row = connection.execute(select(answers).where(answers.c.id == command_id)).one_or_none()
    if row:
        connection.execute(insert(outbox_answers).values(key=row.key, answer=row.answer, since=time.time()))
    return row is not None


def mark_states(connection: Connection, keys: Iterable[str]) -> None:
    """The current state of these keys is to be published. Their rows are locked in one order, whoever marks them."""
    rows = [{"key": key, "revision": 1, "since": time.time()} for key in sorted(set(keys))]
    again = {"revision": outbox_states.c.revision + 1}
    if rows:
        statement = insert_into(connection, outbox_states)
        connection.execute(statement.on_conflict_do_update(index_elements=["key"], set_=again), rows)


def forget_old_answers(connection: Connection) -> None:
    """Commands that no bus keeps any more cannot come again."""
    connection.execute(delete(answers).where(answers.c.at < time.time() - KEPT_S))
