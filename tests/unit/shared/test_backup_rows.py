"""A database as lines: every value comes back as it was, from either kind of database into either."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    DateTime,
    Engine,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    cast,
    insert,
    select,
)

from shared.backup.errors import Damaged
from shared.backup.place import Counting
from shared.backup.rows import AT_ONCE, drop_everything, load_rows, read_header, tables_of, write_rows
from shared.db import open_database
from tests.postgres_server import PostgresServer

metadata = MetaData()
# The one that refers to the other comes first by its name.
children = Table(
    "a_children", metadata, Column("id", Integer, primary_key=True), Column("of", ForeignKey("parents.id"))
)
parents = Table(
    "parents",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("name", String),
    Column("text", Text),
    Column("ratio", Float),
    Column("yes", Boolean),
    Column("raw", LargeBinary),
    Column("at", DateTime(timezone=True)),
    Column("facts", JSON),
)
FULL: dict[str, Any] = {
    "name": "Ünï ' \" \\ \n code",
    "text": "x" * 100_000,
    "ratio": 0.1 + 0.2,
    "yes": True,
    "raw": bytes(range(256)),
    "at": datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
    "facts": {"b": [1, None, {"ü": 1e-9}], "a": "1"},
}


@pytest.fixture(params=["sqlite", "postgresql"])
def one(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    yield from _database(request, request.param, tmp_path / "one.sqlite")


@pytest.fixture(params=["sqlite", "postgresql"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    yield from _database(request, request.param, tmp_path / "other.sqlite")


def _database(request: pytest.FixtureRequest, kind: str, file: Path) -> Iterator[Engine]:
    if kind == "sqlite":
        yield open_database(f"sqlite:///{file}")
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    name = server.new_database()
    engine = open_database(server.url(name))
    yield engine
    engine.dispose()
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def dump(engine: Engine, path: Path) -> int:
    with engine.begin() as sql, path.open("wb") as file:
        return write_rows(sql, "registry", "0001", Counting(file))


def rows(sql: Connection) -> list[tuple[Any, ...]]:
    """With what JSON is on the disk: a null of JSON is no NULL."""
    columns = [cast(column, Text) if isinstance(column.type, JSON) else column for column in parents.columns]
    moments = [column.name for column in parents.columns].index("at")
    found = [list(row) for row in sql.execute(select(*columns).order_by(parents.c.id))]
    for row in found:
        row[moments] = row[moments] and row[moments].replace(tzinfo=UTC)
    return [tuple(row) for row in found]


def test_every_value_comes_back_as_it_was(one: Engine, other: Engine, tmp_path: Path) -> None:
    with one.begin() as sql:
        metadata.create_all(sql)
        sql.execute(insert(parents), [FULL | {"id": 2**53}, dict.fromkeys(FULL) | {"id": 1}])
        sql.execute(insert(parents).values(id=2, name="no facts"))
        sql.execute(insert(children).values(id=1, of=2**53))
        written = rows(sql)
    assert dump(one, tmp_path / "rows") == 4
    assert read_header(tmp_path / "rows").revision == "0001"
    with other.begin() as sql:
        metadata.create_all(sql)
        assert load_rows(sql, tmp_path / "rows") == 4
        assert rows(sql) == written
    with other.begin() as sql:  # numbers go on behind those that came
        assert sql.execute(insert(parents).values(name="next").returning(parents.c.id)).scalar_one() == 2**53 + 1


def test_more_rows_than_are_inserted_at_once_all_come(tmp_path: Path) -> None:
    one, other = (open_database(f"sqlite:///{tmp_path / name}") for name in ("one", "other"))
    count = 2 * AT_ONCE + 1
    with one.begin() as sql:
        metadata.create_all(sql)
        sql.execute(insert(parents), [{"name": str(number)} for number in range(count)])
    dump(one, tmp_path / "rows")
    with other.begin() as sql:
        metadata.create_all(sql)
        assert load_rows(sql, tmp_path / "rows") == count


def _replace(engine: Engine, path: Path) -> None:
    with engine.begin() as sql:
        drop_everything(sql)
        metadata.create_all(sql)
        load_rows(sql, path)


def test_a_file_that_broke_off_is_noticed(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'one'}")
    with engine.begin() as sql:
        metadata.create_all(sql)
        sql.execute(insert(parents), [{"name": str(number)} for number in range(500)])
    path = tmp_path / "rows"
    dump(engine, path)
    whole = path.read_bytes()
    for broken in (whole[:-20], b"", b"no gzip", whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]):
        path.write_bytes(broken)
        with pytest.raises(Damaged):
            _replace(engine, path)
    with engine.begin() as sql:
        assert len(rows(sql)) == 500, "a transaction that fails changes nothing, not even by dropping tables"


def test_tables_come_after_those_that_they_refer_to(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'one'}")
    with engine.begin() as sql:
        metadata.create_all(sql)
        assert [table.name for table in tables_of(sql)] == ["parents", "a_children"]
        drop_everything(sql)
        assert tables_of(sql) == []
