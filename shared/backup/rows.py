"""One database as lines of JSON, in gzip: the same from SQLite and PostgreSQL, so that either can take the other's.

The first line says whose it is and at which revision of its schema; then every table: a line with its columns and their
kinds, and a line for each row. The last line counts the rows, so that a file that broke off is noticed.
"""

from __future__ import annotations

import gzip
import io
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import orjson
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    DateTime,
    LargeBinary,
    MetaData,
    Table,
    Text,
    bindparam,
    insert,
    select,
    text,
    type_coerce,
)
from sqlalchemy import cast as sql_cast

from shared.backup.errors import Damaged

FORMAT = 1
REVISIONS = "alembic_version"
AT_ONCE = 1000
COMPRESSION = 3
"""Three times as fast as gzip's own choice, and a tenth larger."""


@dataclass(frozen=True)
class Header:
    """Whose rows these are, and the revision of the schema that they fit."""

    service: str
    revision: str


def write_rows(connection: Connection, service: str, revision: str, to: io.RawIOBase) -> int:
    """Every row of every table, as of the connection's transaction. Returns how many."""
    count = 0
    with gzip.GzipFile(fileobj=to, mode="wb", compresslevel=COMPRESSION, mtime=0) as out:
        out.write(_line({"format": FORMAT, "service": service, "revision": revision}))
        for table in tables_of(connection):
            kinds = [_kind(column) for column in table.columns]
            columns = [list(pair) for pair in zip(table.columns.keys(), kinds, strict=True)]
            out.write(_line({"table": table.name, "columns": columns}))
            for row in _rows(connection, table):
                out.write(_line([_plain(kind, value) for kind, value in zip(kinds, row, strict=True)]))
                count += 1
        out.write(_line({"rows": count}))
    return count


def read_header(path: Path) -> Header:
    """Raises Damaged."""
    with _decoded(path) as lines:
        return _header(path, next(lines, None))


def load_rows(connection: Connection, path: Path) -> int:
    """Insert what `path` holds into tables that are there and empty. Raises Damaged."""
    tables = {table.name: table for table in tables_of(connection)}
    count, filler = 0, None
    with _decoded(path) as lines:
        _header(path, next(lines, None))
        for line in lines:
            match line:
                case list() if filler:
                    filler.add(line)
                    count += 1
                case {"table": name, "columns": columns}:
                    filler = _next(filler, connection, _known(tables, path, name, columns), columns)
                case {"rows": total} if filler and total == count:
                    filler.flush()
                    _advance_sequences(connection, tables.values())
                    return count
                case _:
                    break
    raise Damaged(f"{path.name} of the backup ends too early, after {count} rows")


def tables_of(connection: Connection) -> list[Table]:
    """The tables of the database, those that others refer to first."""
    metadata = MetaData()
    metadata.reflect(connection)
    return [table for table in metadata.sorted_tables if table.name != REVISIONS]


def drop_everything(connection: Connection) -> None:
    """Every table, with what it holds."""
    metadata = MetaData()
    metadata.reflect(connection)
    metadata.drop_all(connection)


def _rows(connection: Connection, table: Table) -> Iterator[Sequence[Any]]:
    """JSON stays the text that it is: read and written again, a null would become another null."""
    columns = [sql_cast(column, Text) if isinstance(column.type, JSON) else column for column in table.columns]
    query = select(*columns).order_by(*table.primary_key.columns)
    return iter(connection.execution_options(yield_per=AT_ONCE).execute(query))


def _kind(column: Column[Any]) -> str:
    for kind, types in _KINDS.items():
        if isinstance(column.type, types):
            return kind
    return "plain"


_KINDS: dict[str, type[Any]] = {"json": JSON, "bytes": LargeBinary, "moment": DateTime, "boolean": Boolean}


def _plain(kind: str, value: Any) -> Any:
    if value is None or kind in {"plain", "json", "boolean"}:
        return value
    if kind == "bytes":
        return b64encode(value).decode()
    moment = cast(datetime, value)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).isoformat()


_READERS: dict[str, Callable[[str], Any]] = {"bytes": b64decode, "moment": datetime.fromisoformat}


class _Filler:
    """Inserts the rows of one table, many at once."""

    def __init__(self, connection: Connection, table: Table, columns: list[list[str]]) -> None:
        self._connection = connection
        self._names = [f"to_{name}" for name, _ in columns]
        self._readers = [_READERS.get(kind) for _, kind in columns]
        self._insert = insert(table).values({name: _bound(connection, table.columns[name]) for name, _ in columns})
        self._batch: list[dict[str, Any]] = []

    def add(self, values: list[Any]) -> None:
        given = zip(self._names, self._readers, values, strict=True)
        self._batch.append({name: read(it) if read and it is not None else it for name, read, it in given})
        if len(self._batch) == AT_ONCE:
            self.flush()

    def flush(self) -> None:
        if self._batch:
            self._connection.execute(self._insert, self._batch)
            self._batch = []


def _next(filler: _Filler | None, connection: Connection, table: Table, columns: list[list[str]]) -> _Filler:
    if filler:
        filler.flush()
    return _Filler(connection, table, columns)


def _bound(connection: Connection, column: Column[Any]) -> Any:
    if not isinstance(column.type, JSON):
        return bindparam(f"to_{column.name}", type_=column.type)
    as_text = bindparam(f"to_{column.name}", type_=Text())
    if connection.dialect.name == "sqlite":  # its JSON is text, and a cast would make a number of it
        return type_coerce(as_text, Text())
    return sql_cast(as_text, JSON)


def _advance_sequences(connection: Connection, tables: Any) -> None:
    """PostgreSQL counts on where the highest number is; SQLite does so by itself."""
    if connection.dialect.name != "postgresql":
        return
    for table in tables:
        for column in table.primary_key.columns:
            owner = {"table": table.name, "column": column.name}
            sequence = connection.scalar(text("SELECT pg_get_serial_sequence(:table, :column)"), owner)
            if sequence and (highest := connection.scalar(select(column).order_by(column.desc()).limit(1))):
                connection.execute(
                    text("SELECT setval(:sequence, :highest)"), {"sequence": sequence, "highest": highest}
                )


def _known(tables: dict[str, Table], path: Path, name: str, columns: list[list[str]]) -> Table:
    table = tables.get(name)
    if table is None or not {column for column, _ in columns} <= set(table.columns.keys()):
        raise Damaged(f"{path.name} of the backup holds a table {name!r} that its own revision has not")
    return table


def _header(path: Path, line: Any) -> Header:
    if not isinstance(line, dict) or line.get("format") != FORMAT:
        raise Damaged(f"{path.name} is no dump of a database that this version reads")
    return Header(line["service"], line["revision"])


@contextmanager
def _decoded(path: Path) -> Iterator[Iterator[Any]]:
    """The lines of a file. Raises Damaged for what is no gzip or no JSON."""
    with gzip.open(path, "rb") as file:
        try:
            yield (orjson.loads(line) for line in file)
        except (OSError, EOFError, zlib.error, orjson.JSONDecodeError) as error:
            raise Damaged(f"{path.name} of the backup cannot be read: {error}") from error


def _line(value: Any) -> bytes:
    return orjson.dumps(value) + b"\n"
