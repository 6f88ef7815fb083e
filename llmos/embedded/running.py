"""Who holds a home now: read from the supervisor's lock file."""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass
from typing import IO

from llmos.embedded.layout import Layout

LOCK_PATIENCE_S = 1.0
"""A command that looks who holds the lock holds it for an instant itself."""


@dataclass(frozen=True)
class Running:
    """What a running supervisor says of itself in its lock file."""

    pid: int
    url: str


def running(layout: Layout) -> Running | None:
    """The supervisor that holds this home now, if there is one."""
    if not layout.lock_file.exists():
        return None
    with layout.lock_file.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _said(lock.read())
    return None


def lock_home(lock: IO[str]) -> bool:
    """Hold the home by its opened lock file, until that is closed; False where another holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _said(text: str) -> Running | None:
    try:
        said = json.loads(text)
        return Running(int(said["pid"]), str(said["url"]))
    except (ValueError, KeyError, TypeError):
        return None  # it has just taken the lock, or is just letting go of it
