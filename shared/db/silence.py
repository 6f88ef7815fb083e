"""A PostgreSQL that hangs: its host answers for it, so that no keepalive notices."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.errors import ConnectionTimeout

SILENCE_S = 3.0
"""How long a statement may go without a byte of its answer before the server is asked whether it is there."""

T = TypeVar("T")


class LivelyConnection(psycopg.Connection[Any]):
    """Waits for an answer as long as the server takes new connections: a statement or a lock may take its time."""

    address: dict[str, Any]

    @classmethod
    def open(cls, **options: Any) -> LivelyConnection:
        """As `connect`, with the same options."""
        connection = cls.connect(**options)
        connection.address = {name: value for name, value in options.items() if name != "context"}
        return connection

    def wait(self, gen: PQGen[T], *args: Any, **options: Any) -> T:
        """Raises OperationalError when the server hangs; the connection is closed then."""
        return super().wait(self._watched(gen), *args, **options)

    def _watched(self, gen: PQGen[T]) -> Generator[Any, Any, T]:
        """The same steps. psycopg sends one that says nothing came, several times a second."""
        heard_s = time.monotonic()
        try:
            step = next(gen)
            while True:
                came = yield step
                if came:
                    heard_s = time.monotonic()
                elif time.monotonic() - heard_s > SILENCE_S:
                    self._check_server()
                    heard_s = time.monotonic()
                step = gen.send(came)
        except StopIteration as end:
            value: T = end.value
            return value

    def _check_server(self) -> None:
        try:
            psycopg.connect(**self.address).close()
        except ConnectionTimeout:
            self.pgconn.finish()
            raise psycopg.OperationalError("the server hangs: it keeps its connections and answers nothing") from None
        except psycopg.Error:
            return  # it answers, if only that it has no room; what cuts this connection off is heard through it
