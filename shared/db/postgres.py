"""PostgreSQL: how a connection is made, so that a server or a client that is gone is noticed within seconds."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from shared.settings import SettingsError

POOL_WAIT_S = 10
CLIENT = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""How libpq notices a server that vanished without a word. The URL may say otherwise (`?connect_timeout=10`)."""
SERVER = {
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "8000",
    "idle_in_transaction_session_timeout": "10000",
    "timezone": "UTC",
}
"""What the server does for this session to notice a client that vanished, or froze in the middle of a transaction:
its locks would keep everybody else waiting."""
REFUSALS = (
    "authentication failed",
    "no password supplied",
    "does not exist",
    "no pg_hba.conf entry",
    "not permitted to log in",
    "permission denied",
)
"""What a server says that is there and will not have us: asking again does not help."""


def open_postgres(url: URL) -> Engine:
    """An engine that opens nothing yet. Raises ArgumentError or ImportError where SQLAlchemy cannot use the URL."""
    options = {name: value for name, value in CLIENT.items() if name not in url.query}
    engine = create_engine(
        url, pool_pre_ping=True, hide_parameters=True, pool_timeout=POOL_WAIT_S, connect_args=options
    )
    event.listen(engine, "do_connect", _open)
    event.listen(engine, "connect", _prepare)
    return engine


def give_time(connection: Connection) -> None:
    """Let this transaction think between its statements: a migration does more in Python than others."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '5min'"))


def refusal(error: DBAPIError, url: URL) -> SettingsError | None:
    """What to tell a person when the server refuses these credentials or this database; None for all other errors."""
    said = str(error.orig).strip().partition("\n")[0]
    fatal, reason = "FATAL:" in said, said.rpartition("FATAL:")[2].strip()
    if not (fatal or reason.startswith("permission denied")) or not any(words in reason for words in REFUSALS):
        return None
    return SettingsError(f"LLMOS_DB_URL: the server at {url.host}:{url.port or 5432} refuses: {reason}")


def _open(_: object, __: object, args: Any, options: dict[str, Any]) -> Any:
    from shared.db.silence import LivelyConnection  # its driver is loaded only where it is used

    return LivelyConnection.open(**options)


def _prepare(connection: Any, _: object) -> None:
    connection.adapters.register_dumper(str, _text_without_nul())
    settings = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in SERVER.items())
    connection.execute(f"SELECT {settings}")
    connection.commit()


@cache
def _text_without_nul() -> type:
    """PostgreSQL keeps no NUL in a text, and what others say on the bus (a log's last lines) may hold one."""
    from psycopg.types.string import StrDumperUnknown  # loaded only where it is used

    class TextWithoutNul(StrDumperUnknown):
        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\0", "\ufffd"))

    return TextWithoutNul
