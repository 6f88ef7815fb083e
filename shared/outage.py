"""One log line when something begins to fail, one for each other kind of error, and one when it works again."""

from __future__ import annotations

import logging
import threading

from shared.starting import first_line

REASON_CHARS = 300


class Outage:
    """What one piece of work says of its failures: `began` at each, `ended` at each success."""

    def __init__(self, log: logging.Logger, what: str) -> None:
        self._log = log
        self._what = what
        self._lock = threading.Lock()
        self._told: set[type[BaseException]] = set()

    def began(self, error: BaseException, *, exc_info: bool = False) -> None:
        """Errors of a kind that was told since it last worked are not told again."""
        with self._lock:
            news = type(error) not in self._told
            self._told.add(type(error))
        if news:
            reason = first_line(error)[:REASON_CHARS]
            self._log.warning(
                "%s waits, and is tried again until it works: %s",
                self._what,
                reason,
                exc_info=error if exc_info else None,
            )

    @property
    def lasts(self) -> bool:
        """Whether it failed when it was last tried."""
        return bool(self._told)

    def ended(self) -> None:
        with self._lock:
            lasted, self._told = bool(self._told), set()
        if lasted:
            self._log.info("%s works again", self._what)
