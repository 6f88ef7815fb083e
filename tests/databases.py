"""Empty databases with a service's schema, on SQLite and on PostgreSQL: one server a test run, one database a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
        """Its URL."""
        if service not in self._templates:
            template = self._server.new_database()
            engine = open_database(self._server.url(template))
            migrate(engine, f"services.{service}.migrations")
            engine.dispose()
            self._templates[service] = template
        return self._server.url(self._server.new_database(self._templates[service]))


def maker(kind: str, request: pytest.FixtureRequest, folder: Path) -> NewDatabase:
    """How a fixture makes databases of one kind. The server is only started where PostgreSQL is asked for."""
    if kind == "postgresql":
        databases: Databases = request.getfixturevalue("databases")
        return databases.new

    def new(service: str) -> str:
        url = f"sqlite:///{folder / 'db' / f'{service}.sqlite'}"
        migrate(open_database(url), f"services.{service}.migrations")
        return url

    return new
