"""The few statements that SQLite and PostgreSQL spell alike, but SQLAlchemy does not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import ColumnElement, Connection, Engine, Executable, Table, select

from shared.db import insert_into, reading

__all__ = ["insert_new", "lock", "reading", "upsert", "upsert_all", "writing"]

_turns: WeakKeyDictionary[Engine, threading.Lock] = WeakKeyDictionary()
_turns_lock = threading.Lock()


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


def lock(sql: Connection, table: Table, which: ColumnElement[bool]) -> None:
    """Lock these rows until the transaction ends, in one order: whoever changes several does so first.

    Two gateways that lock them as they find them would each hold what the other waits for.
    """
    if sql.dialect.name != "sqlite":
        keys = list(table.primary_key)
        sql.execute(select(*keys).where(which).order_by(*keys).with_for_update())


def upsert(
    sql: Connection,
    table: Table,
    row: dict[str, Any],
    when: Callable[[Any], ColumnElement[bool]] | None = None,
    keep: Collection[str] = (),
) -> bool:
    """Insert the row, or replace the one with its primary key when `when(new)` holds. True if anything changed.

    What `keep` names stays as it was in a row that is there already.
    """
    return bool(sql.execute(_upsert(sql, table, row, when, keep), row).rowcount)


def upsert_all(
    sql: Connection,
    table: Table,
    rows: Sequence[dict[str, Any]],
    when: Callable[[Any], ColumnElement[bool]] | None = None,
) -> None:
    """`upsert` of many rows that have the same columns: one statement, which the driver runs for each in turn.

    So a key may come twice. PostgreSQL's driver waits for the answers only at the end.
    """
    if rows:
        sql.execute(_upsert(sql, table, rows[0], when), list(rows))


def _upsert(
    sql: Connection,
    table: Table,
    columns: Collection[str],
    when: Callable[[Any], ColumnElement[bool]] | None,
    keep: Collection[str] = (),
) -> Executable:
    keys = [column.name for column in table.primary_key]
    insert = insert_into(sql, table)
    changes = {name: insert.excluded[name] for name in columns if name not in (*keys, *keep)}
    where = when(insert.excluded) if when else None
    statement: Executable = insert.on_conflict_do_update(index_elements=keys, set_=changes, where=where)
    return statement


def insert_new(sql: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert the rows whose primary keys are not there yet."""
    if rows:
        sql.execute(insert_into(sql, table).on_conflict_do_nothing(), list(rows))
