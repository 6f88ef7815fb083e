"""The few statements that SQLite and PostgreSQL spell alike, but SQLAlchemy does not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import ColumnElement, Connection, Engine, Table

from shared.db import insert_into

_turns: WeakKeyDictionary[Engine, threading.Lock] = WeakKeyDictionary()
_turns_lock = threading.Lock()


def reading(engine: Engine) -> Connection:
    """A connection for a block of reads, which never waits for a writer."""
    return engine.connect().execution_options(readonly=True)


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that is committed when the block ends.

    SQLite has one writer at a time, and who waits for it polls with growing pauses; in one process a lock is fairer.
    """
    with _turn(engine), engine.begin() as sql:
        yield sql


def _turn(engine: Engine) -> AbstractContextManager[object]:
    if engine.dialect.name != "sqlite":
        return nullcontext()
    with _turns_lock:
        return _turns.setdefault(engine, threading.Lock())


def upsert(
    sql: Connection,
    table: Table,
    row: dict[str, Any],
    when: Callable[[Any], ColumnElement[bool]] | None = None,
) -> bool:
    """Insert the row, or replace the one with its primary key when `when(new)` holds. True if anything changed."""
    keys = [column.name for column in table.primary_key]
    insert = insert_into(sql, table).values(row)
    changes = {name: insert.excluded[name] for name in row if name not in keys}
    statement = insert.on_conflict_do_update(
        index_elements=keys, set_=changes, where=when(insert.excluded) if when else None
    )
    return bool(sql.execute(statement).rowcount)


def insert_new(sql: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert the rows whose primary keys are not there yet."""
    if rows:
        sql.execute(insert_into(sql, table).on_conflict_do_nothing(), list(rows))
