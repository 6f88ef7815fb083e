"""What the adapters of the bus share on the way to a handler."""

from __future__ import annotations

import subprocess
import sys
import threading

from shared.bus.delivery import Subscriptions

BETWEEN_S = 0.5
"""Time for another thread to come in between, where it can."""


class Open:
    """A subscription that is open until it is closed."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.closed = False

    def start(self) -> None: ...

    def close(self) -> None:
        self.closed = True


class Interrupted(threading.Event):
    """While it is looked at for the first time, another thread starts a subscription."""

    def __init__(self, subscriptions: Subscriptions, other: Open) -> None:
        super().__init__()
        self.thread = threading.Thread(target=subscriptions.start, args=(other,))
        self._seen = False

    def is_set(self) -> bool:
        if not self._seen:
            self._seen = True
            self.thread.start()
            self.thread.join(BETWEEN_S)
        return super().is_set()


def test_a_bus_closes_what_two_threads_have_started_at_once() -> None:
    subscriptions = Subscriptions()
    first, second, third = Open(), Open(), Open()
    subscriptions.start(first)
    first.stopping = interrupted = Interrupted(subscriptions, third)
    subscriptions.start(second)
    interrupted.thread.join()
    subscriptions.close()
    assert [one.closed for one in (first, second, third)] == [True, True, True]


def test_a_bus_knows_every_word_of_the_vocabulary_whatever_its_service_has_imported() -> None:
    script = """
import importlib, pkgutil
import shared.bus.delivery
import shared.contracts
from shared.contracts.message import Message
known = set(Message.by_type)
for module in pkgutil.iter_modules(shared.contracts.__path__):
    importlib.import_module(f"shared.contracts.{module.name}")
print(*sorted(set(Message.by_type) - known))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
