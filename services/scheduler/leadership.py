"""Who leads. One scheduler decides; others stand by and take over when it is gone."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO, Protocol

POLL_S = 0.5


class Stopping(Protocol):
    def wait(self, timeout_s: float, /) -> bool:
        """Whether a stop was asked for by then."""


class Leadership(Protocol):
    def acquire(self, stopping: Stopping) -> bool:
        """Wait until this process may lead; False when told to stop before. `truth.take_over` comes next."""

    def held(self) -> bool:
        """Whether this process may still lead. Once it may not, it must acquire anew."""

    def release(self) -> None:
        """Let another lead. Nothing happens where this one does not."""


class FileLeadership:
    """A lock on a file beside a SQLite database: the system lets go of it when the process dies, however it dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def acquire(self, stopping: Stopping) -> bool:
        file = self._path.open("ab")
        while not _locked(file):
            if stopping.wait(POLL_S):
                file.close()
                return False
        self._file = file
        return True

    def held(self) -> bool:
        return self._file is not None

    def release(self) -> None:
        if self._file:
            self._file.close()
            self._file = None


def _locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
