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


MISSING_AFTER_S = 15.0
"""One slow answer under load says little, and would take every process of a service out of a balancer at once. More
than the ten seconds between two questions of an orchestrator."""


class NotReady(Exception):
    """What a check raises that has no error of its own."""


Checks = Mapping[str, Callable[[], None]]
"""What a service needs, and how to find out that it is there: a check that raises says why it is not."""


class Readiness:
    """Looks at everything at once. A look that takes too long goes on, and its answer is the next one's.

    What was there lately counts as there while a look at it takes long, until `missing_after_s` after that good answer.
    """

    def __init__(self, checks: Checks, look_s: float = LOOK_S, missing_after_s: float = MISSING_AFTER_S) -> None:
        self._checks = checks
        self._look_s = look_s
        self._missing_after_s = missing_after_s
        self._lock = threading.Lock()
        self._looks: dict[str, Future[str]] = {}
        self._reasons: dict[str, str] = {}
        self._good_s: dict[str, float] = {}

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
            return self._reasons.get(name) or self._silence(name)

    def _silence(self, name: str) -> str:
        """What to say of something that was there at the last look, or was never looked at, and is silent now."""
        silent_s = time.monotonic() - self._good_s.get(name, float("-inf"))
        if silent_s <= self._missing_after_s:
            return ""
        return f"no answer within {self._look_s if silent_s == float('inf') else silent_s:.3g} s"

    def _look(self, name: str, check: Callable[[], None]) -> Future[str]:
        """The one under way, or a new one."""
        with self._lock:
            look = self._looks.get(name)
            if look is None or look.done():
                look = self._looks[name] = Future()
                threading.Thread(target=self._run, args=(name, check, look), name=f"ready:{name}", daemon=True).start()
            return look

    def _run(self, name: str, check: Callable[[], None], look: Future[str]) -> None:
        began_s = time.monotonic()
        try:
            check()
            reason = ""
        except Exception as error:  # whatever it is, it is the answer to the question
            reason = first_line(error)
        if not reason:
            self._good_s[name] = began_s
        self._reasons[name] = reason
        look.set_result(reason)
