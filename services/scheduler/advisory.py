"""Leadership by PostgreSQL: a session's advisory lock, and signs of life that the leader and who stands by both watch.

The lock goes when its connection does, so a leader that is killed is followed at once. A host that vanishes, or a
process that freezes, closes nothing: there the clock decides. The leader confirms its connection every second; without
an answer for LEASE_S it takes itself for deposed. Who stands by ends a holder's session that the server has not heard
for SILENT_S, which is longer: by then the holder has given up. Should a clock lie, the epoch fences every write.
"""

from __future__ import annotations

import logging
import threading
import time

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from services.scheduler.leadership import POLL_S, Stopping
from shared.db import why
from shared.db.locks import lock_number
from shared.db.postgres import refusal

log = logging.getLogger("llmos.scheduler.leadership")

CONFIRM_S = 1.0
LEASE_S = 5.0
SILENT_S = 8.0

_LOCK = text("SELECT pg_try_advisory_lock(:number)")
_CONFIRM = text("SELECT 1")
_END_A_SILENT_HOLDER = text("""
    SELECT pg_terminate_backend(holder.pid)
    FROM pg_locks AS held JOIN pg_stat_activity AS holder ON holder.pid = held.pid
    WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 1
      AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (held.classid::bigint << 32) | held.objid::bigint = :number
      AND clock_timestamp() - holder.state_change > make_interval(secs => :silent_s)
""")


class AdvisoryLeadership:
    """The lock of one database, on a connection of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._number = lock_number("leader")
        self._asking: Connection | None = None
        self._lease: Lease | None = None

    def acquire(self, stopping: Stopping) -> bool:
        """Raises SettingsError where the server refuses us for good."""
        trouble = ""
        try:
            while self._lease is None:
                try:
                    self._lease, trouble = self._ask(), ""
                except SQLAlchemyError as error:
                    self._hang_up()
                    trouble = self._told(error, trouble)
                if self._lease is None and stopping.wait(POLL_S):
                    return False
        finally:
            self._hang_up()
        return True

    def held(self) -> bool:
        return self._lease is not None and self._lease.valid()

    def release(self) -> None:
        if self._lease is not None:
            self._lease.end()
            self._lease = None

    def _ask(self) -> Lease | None:
        """Try once; end a holder that is silent, so that the next try can succeed."""
        asked_s = time.monotonic()
        connection = self._asking = self._asking or self._connect()
        if connection.execute(_LOCK, {"number": self._number}).scalar_one():
            self._asking = None
            return Lease(connection, asked_s)
        if connection.execute(_END_A_SILENT_HOLDER, {"number": self._number, "silent_s": SILENT_S}).all():
            log.warning("the leader was not heard of for %g s: its session is ended", SILENT_S)
        return None

    def _connect(self) -> Connection:
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()  # the pool never gets it back with the lock
        return connection

    def _hang_up(self) -> None:
        if self._asking is not None:
            self._asking.close()
            self._asking = None

    def _told(self, error: SQLAlchemyError, trouble: str) -> str:
        if isinstance(error, DBAPIError) and (refused := refusal(error, self._engine.url)):
            raise refused from None
        if (reason := why(error)) != trouble:
            log.warning("waits for the database: %s", reason)
        return reason


class Lease:
    """The lock, for as long as its connection answers. A thread of its own asks, so that nobody waits for it."""

    def __init__(self, connection: Connection, confirmed_s: float) -> None:
        self._connection = connection
        self._confirmed_s = confirmed_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._confirm, name="leadership", daemon=True)
        self._thread.start()

    def valid(self) -> bool:
        return not self._over.is_set() and time.monotonic() - self._confirmed_s < LEASE_S

    def end(self) -> None:
        """The connection is closed, and the lock free; where the server does not answer, it sees to that itself."""
        self._over.set()
        self._thread.join(CONFIRM_S)

    def _confirm(self) -> None:
        try:
            while not self._over.wait(CONFIRM_S):
                asked_s = time.monotonic()
                self._connection.execute(_CONFIRM)
                self._confirmed_s = asked_s
        except SQLAlchemyError as error:
            log.warning("the connection that holds the leader's lock is lost: %s", why(error))
        finally:
            self._over.set()
            self._connection.close()
