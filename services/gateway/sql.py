"""The few statements that SQLite and PostgreSQL spell alike, but SQLAlchemy does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Table
from sqlalchemy.dialects import postgresql, sqlite


def reading(engine: Engine) -> Connection:
    """A connection for a block of reads, which never waits for a writer."""
    return engine.connect().execution_options(readonly=True)


def upsert(
    sql: Connection,
    table: Table,
    row: dict[str, Any],
    when: Callable[[Any], ColumnElement[bool]] | None = None,
) -> bool:
    """Insert the row, or replace the one with its primary key when `when(new)` holds. True if anything changed."""
    keys = [column.name for column in table.primary_key]
    insert = _insert(sql, table).values(row)
    changes = {name: insert.excluded[name] for name in row if name not in keys}
    statement = insert.on_conflict_do_update(
        index_elements=keys, set_=changes, where=when(insert.excluded) if when else None
    )
    return bool(sql.execute(statement).rowcount)


def insert_new(sql: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert the rows whose primary keys are not there yet."""
    if rows:
        sql.execute(_insert(sql, table).on_conflict_do_nothing(), list(rows))


def _insert(sql: Connection, table: Table) -> Any:
    return (postgresql if sql.dialect.name == "postgresql" else sqlite).insert(table)
