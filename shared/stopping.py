"""Being told to stop: SIGTERM and SIGINT, waited for instead of handled."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable

SIGNALS = {signal.SIGTERM, signal.SIGINT}
LONGEST_WAIT_S = 3600.0


def all_at_once(stops: Iterable[Callable[[], None]]) -> None:
    """Returns when all have, and raises the first error of any. What reads from Kafka takes half a second to end.

    One that hangs does not keep the process from ending.
    """
    errors: list[BaseException] = []

    def run(stop: Callable[[], None]) -> None:
        try:
            stop()
        except BaseException as error:
            errors.append(error)

    # No executor: Python waits at its exit for every thread of one.
    threads = [threading.Thread(target=run, args=(stop,), name="stop", daemon=True) for stop in stops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


class Stop:
    """Made first thing on the main thread, which alone may wait for it; any thread may ask.

    A handler runs in the main thread between two of its instructions: it comes late, or never, while that thread waits
    for a lock. So the signals are blocked, and taken by whoever waits. Children inherit that: not for who starts some.
    """

    def __init__(self) -> None:
        self.asked = False
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # before any thread starts, so that all inherit it

    def wait(self, timeout_s: float = LONGEST_WAIT_S) -> bool:
        """Whether a stop was asked for by then."""
        came = None if self.asked else signal.sigtimedwait(SIGNALS, timeout_s)
        # A process that was frozen for longer than the timeout gets back what was never filled in.
        self.asked = self.asked or (came is not None and came.si_signo in SIGNALS)
        return self.asked

    def wait_until_asked(self) -> None:
        while not self.wait():
            pass

    def ask(self) -> None:
        """From any thread."""
        os.kill(os.getpid(), signal.SIGTERM)
