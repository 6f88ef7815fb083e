"""A registry's handler that is killed with kill -9 at its n-th step: around every store call, before every commit."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import event

from services.registry.handlers import Handlers
from services.registry.inbox import Inbox
from shared.bus.port import Position, Record
from shared.contracts.message import decode
from shared.contracts.topics import REGISTRY_COMMANDS
from shared.db import open_database
from shared.store.local import LocalStore
from tests.waiting import eventually


class Countdown:
    """Kills this process at the n-th step."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def step(self, *_: object) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class MortalStore(LocalStore):
    """A local store with a step before and after every call."""

    def __init__(self, root: Path, countdown: Countdown) -> None:
        super().__init__(root)
        self._countdown = countdown

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found):
            return found
        return self._stepping(found)

    def _stepping(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*args: Any) -> Any:
            self._countdown.step()
            answer = call(*args)
            self._countdown.step()
            return answer

        return stepping


def handle(folder: Path, db_url: str, raw: bytes, steps: int) -> None:
    """Handle one command in this process, which may not survive it."""
    countdown = Countdown(steps)
    engine = open_database(db_url)
    event.listen(engine, "commit", countdown.step)
    handlers = Handlers(engine, MortalStore(folder / "objects", countdown), lambda: None)
    inbox = Inbox(engine, handlers.handle, lambda: None)
    inbox.commands([Record(REGISTRY_COMMANDS, "default/m", Position(0, 0), decode(raw))])
    working = threading.Thread(target=inbox.run)
    working.start()
    eventually(lambda: not inbox.waiting(), 60)
    inbox.stop()
    working.join()
    engine.dispose()
