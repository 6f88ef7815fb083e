"""One log line when a server goes away, and one when it is back."""

from __future__ import annotations

import logging
import threading


class Outage:
    """Says once that a server is away, and once that it is back."""

    def __init__(self, log: logging.Logger, what: str) -> None:
        self._log = log
        self._what = what
        self._lock = threading.Lock()
        self._lasts = False

    def began(self, error: Exception) -> None:
        with self._lock:
            first, self._lasts = not self._lasts, True
        if first:
            self._log.warning("%s: the server is away, and tried again until it is back: %s", self._what, error)

    def ended(self) -> None:
        with self._lock:
            last, self._lasts = self._lasts, False
        if last:
            self._log.info("%s: the server is back", self._what)
