"""SQL, one database per service: SQLite on one machine, PostgreSQL on many."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.pool import QueuePool


def open_database(url: str) -> Engine:
    """An engine for `sqlite:///file` or `postgresql+psycopg://…`.

    SQLite runs with WAL and `synchronous=FULL`: what is committed survives a power cut. Every write transaction takes
    the lock at its beginning, so that two writers wait for each other instead of failing halfway.
    """
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True)
    file = make_url(url).database
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, poolclass=QueuePool, connect_args={"check_same_thread": False, "timeout": 30})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_immediate)
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # sqlite3 must not begin transactions on its own: SQLAlchemy does
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Any) -> None:
    readonly = connection.get_execution_options().get("readonly", False)
    connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")


def migrate(engine: Engine, package: str) -> None:
    """Bring the schema to the newest version by the Alembic scripts of `package` (e.g. `services.registry.migrations`).

    `package` holds `env.py`, which is `from shared.db.env import run; run()`, and `versions/`.
    """
    folder = importlib.import_module(package).__path__[0]
    config = Config()
    config.set_main_option("script_location", folder)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
