"""Empty databases with a service's schema, on SQLite and on PostgreSQL: one server a test run, one database a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from shared.db import migrate, open_database
from tests.postgres_server import PostgresServer

KINDS = ["sqlite", "postgresql"]

NewDatabase = Callable[[str], str]
"""Service → the URL of a new database with its schema."""


class Databases:
    """Makes databases. On PostgreSQL they are copies of one that was migrated once."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._templates: dict[str, str] = {}

    def new(self, service: str) -> str:
        """Its name."""
        if service not in self._templates:
            template = self._server.new_database()
            engine = open_database(self._server.url(template))
            migrate(engine, f"services.{service}.migrations")
            engine.dispose()
            self._templates[service] = template
        return self._server.new_database(self._templates[service])

    def url(self, name: str) -> str:
        """As in LLMOS_DB_URL."""
        return self._server.url(name)

    def drop(self, name: str) -> None:
        """Whoever is still connected to it."""
        self._server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def maker(kind: str, request: pytest.FixtureRequest, folder: Path) -> NewDatabase:
    """How a fixture makes databases of one kind, which go with it. PostgreSQL is only started where it is asked for."""
    if kind == "postgresql":
        databases: Databases = request.getfixturevalue("databases")

        def copy(service: str) -> str:
            name = databases.new(service)
            request.addfinalizer(lambda: databases.drop(name))
            return databases.url(name)

        return copy
    return in_files(folder)


def in_files(folder: Path) -> NewDatabase:
    """SQLite, each database a file of its own in the folder."""

    def new(service: str) -> str:
        url = f"sqlite:///{folder / 'db' / uuid4().hex / f'{service}.sqlite'}"
        migrate(open_database(url), f"services.{service}.migrations")
        return url

    return new
