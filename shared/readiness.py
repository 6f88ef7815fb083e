"""Whether a service has all that it needs now, asked by an orchestrator every few seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet

from shared.starting import first_line

LOOK_S = 1.5
"""Whoever asks waits for two seconds or more; a server that vanished says nothing for longer."""


class NotReady(Exception):
    """What a check raises that has no error of its own."""


Checks = Mapping[str, Callable[[], None]]
"""What a service needs, and how to find out that it is there: a check that raises says why it is not."""


class Readiness:
    """Looks at everything at once. A look that takes too long goes on, and its answer is the next one's."""

    def __init__(self, checks: Checks, look_s: float = LOOK_S) -> None:
        self._checks = checks
        self._look_s = look_s
        self._lock = threading.Lock()
        self._looks: dict[str, Future[str]] = {}
        self._reasons: dict[str, str] = {}

    def missing(self) -> dict[str, str]:
        """The names of the checks that failed, each with its reason in a line."""
        ends_s = time.monotonic() + self._look_s
        looks = {name: self._look(name, check) for name, check in self._checks.items()}
        reasons = {name: self._reason(name, look, ends_s) for name, look in looks.items()}
        return {name: reason for name, reason in reasons.items() if reason}

    def _reason(self, name: str, look: Future[str], ends_s: float) -> str:
        try:
            return look.result(max(0.0, ends_s - time.monotonic()))
        except NotYet:
            return self._reasons.get(name) or f"no answer within {self._look_s:g} s"

    def _look(self, name: str, check: Callable[[], None]) -> Future[str]:
        """The one under way, or a new one."""
        with self._lock:
            look = self._looks.get(name)
            if look is None or look.done():
                look = self._looks[name] = Future()
                threading.Thread(target=self._run, args=(name, check, look), name=f"ready:{name}", daemon=True).start()
            return look

    def _run(self, name: str, check: Callable[[], None], look: Future[str]) -> None:
        try:
            check()
            reason = ""
        except Exception as error:  # whatever it is, it is the answer to the question
            reason = first_line(error)
        self._reasons[name] = reason
        look.set_result(reason)
