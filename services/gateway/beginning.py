"""The gateway's start: it answers from its first second, and works as soon as its database is there."""

from __future__ import annotations

import threading
from collections.abc import Callable

from structlog import get_logger

from shared.settings import SettingsError
from shared.starting import RETRY_S, Need

log = get_logger("gateway")


class Beginning:
    """`go` starts what works on the database. Until that is there every request with a key is a 503.

    `refused` is told where the database will never take us; the process is to end then.
    """

    def __init__(self, database: Need, go: Callable[[], None], refused: Callable[[SettingsError], None]) -> None:
        self._database = database
        self._go = go
        self._refused = refused
        self._there = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gateway:beginning", daemon=True)

    def start(self) -> None:
        """At once where the database is there, else as soon as it is."""
        try:
            self.prepare()
        except SettingsError as error:
            self._refused(error)
            return
        if self._there:
            self._go()
        else:
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def prepare(self) -> None:
        """Look once. Raises SettingsError."""
        self._there = self._there or self._database.there()

    def _run(self) -> None:
        while not self._stopping.wait(RETRY_S):
            try:
                self.prepare()
            except SettingsError as error:
                self._refused(error)
                return
            except Exception:  # without this thread nothing would ever begin
                log.exception("cannot_begin")
            if self._there:
                self._go()
                return
