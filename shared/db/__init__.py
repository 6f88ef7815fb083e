"""SQL, one database per service: SQLite on one machine, PostgreSQL on many."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, inspect, text
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from shared.db.locks import hold
from shared.db.postgres import give_time, open_postgres, refusal
from shared.settings import Settings, SettingsError, shown
from shared.starting import Need

AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeout)
"""What is raised when the database does not answer, or has taken the connection away: it may work again later."""
DISK_FULL = "53100"
"""PostgreSQL's code, https://www.postgresql.org/docs/current/errcodes-appendix.html."""


def open_database(url: str) -> Engine:
    """An engine for `sqlite:///file` or `postgresql+psycopg://…`.

    SQLite runs with WAL and `synchronous=FULL`: what is committed survives a power cut. Every write transaction takes
    the lock at its beginning, so that two writers wait for each other instead of failing halfway.
    Raises SettingsError for a URL that names no database, or one whose driver is not installed.
    """
    try:
        address = make_url(url)
        if address.get_backend_name() == "sqlite":
            return _open_file(address)
        if address.get_backend_name() == "postgresql":
            return open_postgres(address)
        raise ArgumentError(f"{address.get_backend_name()} is neither")
    except ArgumentError as error:  # its message never holds the password
        raise SettingsError(f"LLMOS_DB_URL: sqlite:///file or postgresql+psycopg://… is needed: {error}") from None
    except ImportError as error:
        raise SettingsError(f"LLMOS_DB_URL: its driver is not installed: {error}") from None
    except ValueError:  # its message does, where a password was taken for the port
        raise SettingsError(f"LLMOS_DB_URL: the port of {shown(url)} must be a number") from None


def _open_file(address: URL) -> Engine:
    if address.database:
        Path(address.database).parent.mkdir(parents=True, exist_ok=True)
    options = {"check_same_thread": False, "timeout": 30}
    engine = create_engine(address, poolclass=QueuePool, hide_parameters=True, connect_args=options)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_immediate)
    return engine


def why(error: Exception) -> str:
    """A database's error in one line, without the statement that met it."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    return str(cause).strip().partition("\n")[0] or type(cause).__name__


def is_full(error: Exception) -> bool:
    """Whether the database could not write for want of room on its disk."""
    cause = error.orig if isinstance(error, DBAPIError) else None
    return getattr(cause, "sqlite_errorname", "") == "SQLITE_FULL" or getattr(cause, "sqlstate", "") == DISK_FULL


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # sqlite3 must not begin transactions on its own: SQLAlchemy does
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Any) -> None:
    readonly = connection.get_execution_options().get("readonly", False)
    connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")


def reading(engine: Engine) -> Connection:
    """A connection for a block of reads, which never waits for a writer.

    SQLite shows it one state throughout, PostgreSQL at every statement what is committed by then: what must fit
    together is read in one statement, or with what can only have grown read last.
    """
    if engine.dialect.name == "postgresql":  # no transaction: two round trips less, and nothing stays open
        return engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    return engine.connect().execution_options(readonly=True)


class DatabaseAway(Exception):
    """The message is the reason, in a line."""


def ping(engine: Engine) -> None:
    """Raises DatabaseAway."""
    try:
        with reading(engine) as sql:
            sql.execute(text("SELECT 1"))
    except AWAY as error:
        raise DatabaseAway(why(error)) from None


def insert_into(connection: Connection, table: Table) -> Any:
    """An insert that can go on `on_conflict_…`: both databases write it alike, but each dialect builds its own."""
    if connection.dialect.name == "postgresql":  # its dialect is not loaded where it is not used
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)
    return sqlite.insert(table)


def migrate(engine: Engine, package: str) -> None:
    """Bring the schema to the newest version by the Alembic scripts of `package` (e.g. `services.registry.migrations`).

    `package` holds `env.py`, which is `from shared.db.env import run; run()`, and `versions/`, whose files are named
    after their revisions: `0001_what.py`. Of two that begin at once the second waits, and finds it done. A schema that
    a newer release has brought further is left as it is. Raises SettingsError where the server refuses us for good.
    """
    folder = Path(importlib.import_module(package).__path__[0])
    try:
        with engine.begin() as connection:
            give_time(connection)
            hold(connection, "migrate")
            if (_version(connection) or "") < newest_version(folder):
                upgrade(connection, folder)
    except DBAPIError as error:
        if refused := refusal(error, engine.url):
            raise refused from None
        raise


def need(engine: Engine, package: str, settings: Settings) -> Need:
    """The database with the newest schema, as a start needs it: whoever comes first brings the schema up to date."""
    return Need("the database", lambda: migrate(engine, package), AWAY, settings.init_timeout_s, why)


def newest_version(folder: Path) -> str:
    """The revision that the migrations in `folder` end with."""
    return max(script.stem.partition("_")[0] for script in (folder / "versions").glob("[0-9]*_*.py"))


def _version(connection: Connection) -> str | None:
    """The revision that the schema is at; None in an empty database."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def upgrade(connection: Connection, folder: Path, revision: str = "head") -> None:
    """Run the migrations in `folder` up to a revision, in the connection's transaction."""
    from alembic import command  # a third of a second, which only a start that migrates pays
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(folder))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
