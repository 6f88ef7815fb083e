"""Who holds a home now: read from the supervisor's lock file."""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass

from llmos.embedded.layout import Layout


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


def _said(text: str) -> Running | None:
    try:
        said = json.loads(text)
        return Running(int(said["pid"]), str(said["url"]))
    except (ValueError, KeyError, TypeError):
        return None  # it has just taken the lock, or is just letting go of it
