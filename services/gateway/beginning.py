"""The gateway's start: it answers from its first second, and works as soon as its database is there."""

from __future__ import annotations

import threading
from collections.abc import Callable

from structlog import get_logger

from shared.db import AWAY, why
from shared.settings import SettingsError

log = get_logger("gateway")

RETRY_S = 1.0


class Beginning:
    """`prepare` needs the database; `go` starts what works on it. Until then every request with a key is a 503."""

    def __init__(self, prepare: Callable[[], None], go: Callable[[], None]) -> None:
        self._prepare = prepare
        self._go = go
        self._prepared = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gateway:beginning", daemon=True)

    def start(self) -> None:
        """At once where the database answers, else as soon as it does. Raises SettingsError as `prepare` does."""
        if self.prepare():
            self._go()
        else:
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def prepare(self) -> bool:
        """Try once. False while the database is away. Raises SettingsError where it refuses us."""
        if self._prepared:
            return True
        try:
            self._prepare()
        except AWAY as error:
            log.warning("waits_for_database", reason=why(error))
            return False
        self._prepared = True
        return True

    def _run(self) -> None:
        while not self._stopping.wait(RETRY_S):
            try:
                if self.prepare():
                    self._go()
                    return
            except SettingsError as error:  # whoever mends the server's side needs no restart of ours
                log.error("refused_by_database", reason=str(error))
            except Exception:  # without this thread nothing would ever begin
                log.exception("cannot_begin")
