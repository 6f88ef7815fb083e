"""Locks that a database gives to whoever asks first: PostgreSQL's advisory locks.

SQLite needs none of them: it has one writer at a time, and one process of each service.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError


def lock_number(name: str) -> int:
    """The 64-bit number by which PostgreSQL knows the lock of that name. Each database has its own locks."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)


def hold(connection: Connection, *names: str) -> None:
    """Wait for these locks; they are let go of when the transaction ends. What others committed can be seen then."""
    if connection.dialect.name != "postgresql":
        return
    numbers = sorted({lock_number(name) for name in names})  # in one order, so that no two wait for each other
    connection.execute(text("SELECT " + ", ".join(f"pg_advisory_xact_lock({number})" for number in numbers)))


@contextmanager
def turn(engine: Engine, name: str) -> Iterator[bool]:
    """Whether it is this process's turn: false while another one is in such a block. Takes no transaction."""
    if engine.dialect.name != "postgresql":
        yield True
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        number = {"number": lock_number(name)}
        mine = bool(connection.execute(text("SELECT pg_try_advisory_lock(:number)"), number).scalar_one())
        try:
            yield mine
        finally:
            if mine:
                _let_go(connection, number)


def _let_go(connection: Connection, number: dict[str, int]) -> None:
    try:
        connection.execute(text("SELECT pg_advisory_unlock(:number)"), number)
    except DBAPIError:  # the connection is gone, and the lock with it
        connection.invalidate()
