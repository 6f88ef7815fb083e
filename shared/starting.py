"""What a start waits for, and what ends it: the same in every service.

A server that does not answer is waited for, however long that takes. What a server says that does answer is final where
waiting does not change it: wrong credentials, no such database, a topic of another shape. Between the two lies what
`llmos admin init` makes, which may be at work beside us: that is waited for as long as LLMOS_INIT_TIMEOUT_S says.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from shared.settings import SettingsError

log = logging.getLogger("llmos.start")

RETRY_S = 1.0


class Uninitialized(Exception):
    """The server answers, and lacks what `llmos admin init` makes. The ports' errors for that are of this kind too."""


def first_line(error: BaseException) -> str:
    """An error as the reason of something else."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


class Need:
    """One thing that a start needs.

    `check` raises one of `away` while it is not there, and SettingsError where it never will be.
    """

    def __init__(
        self,
        what: str,
        check: Callable[[], None],
        away: tuple[type[Exception], ...],
        init_timeout_s: float,
        reason: Callable[[Exception], str] = first_line,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._check = check
        self._away = away
        self._init_timeout_s = init_timeout_s
        self._reason = reason
        self._clock = clock
        self._lacking_since_s: float | None = None
        self._told = ""

    def there(self) -> bool:
        """Look once; what is waited for is logged when it changes. Raises SettingsError where waiting does not help."""
        try:
            self._check()
        except self._away as error:
            reason = self._reason(error)
            self._bear(error, reason)
            if reason != self._told:
                log.warning("waits for %s: %s", self._what, reason)
            self._told = reason
            return False
        if self._told:
            log.info("%s is there", self._what)
        return True

    def wait(self, pause: Callable[[float], bool]) -> bool:
        """Look until it is there. `pause` waits so many seconds and says whether we are told to stop: then it is False.
        Raises SettingsError where waiting does not help."""
        while not self.there():
            if pause(RETRY_S):
                return False
        return True

    def _bear(self, error: Exception, reason: str) -> None:
        if not isinstance(error, Uninitialized):
            self._lacking_since_s = None
            return
        now_s = self._clock()
        if self._lacking_since_s is None:
            self._lacking_since_s = now_s
        if now_s - self._lacking_since_s >= self._init_timeout_s:
            raise SettingsError(f"{reason} (waited {self._init_timeout_s:g} s: LLMOS_INIT_TIMEOUT_S)")


class Watch:
    """Looks, beside a service that works already, until every need was there once. `refused` is told of the first that
    never will be; that ends the watch."""

    def __init__(self, needs: Sequence[Need], refused: Callable[[SettingsError], None]) -> None:
        self._missing = list(needs)
        self._refused = refused
        self._told: set[type[Exception]] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="start", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Does not wait for a look that is under way: a server that vanished may hold it for long."""
        self._stopping.set()

    def _run(self) -> None:
        while self._missing and not self._stopping.is_set():
            try:
                self._missing = [need for need in self._missing if not self._there(need)]
            except SettingsError as error:
                if not self._stopping.is_set():
                    self._refused(error)
                return
            if self._missing:
                self._stopping.wait(RETRY_S)

    def _there(self, need: Need) -> bool:
        """An error that nobody foresaw says nothing final: it is told once a kind, and looked at again."""
        try:
            return need.there()
        except SettingsError:
            raise
        except Exception as error:
            if type(error) not in self._told:
                self._told.add(type(error))
                log.exception("cannot look, and tries again")
            return False
