"""Where the embedded system keeps its things, under one home folder."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

DEFAULT_HOME = Path.home() / ".llmos"

# The kernel's limit for the path of a unix socket is 108 bytes with the closing zero.
SOCKET_PATH_LIMIT = 100


def default_home() -> Path:
    """Where the system of this user lies: LLMOS_HOME, or ~/.llmos."""
    return Path(os.environ.get("LLMOS_HOME") or DEFAULT_HOME).expanduser().absolute()


@dataclass(frozen=True)
class Layout:
    """The folders and files of one home."""

    home: Path

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def key_file(self) -> Path:
        return self.home / "key"

    @property
    def lock_file(self) -> Path:
        """Held by the supervisor; its text is the supervisor's pid and address."""
        return self.home / "up.lock"

    @property
    def processes_file(self) -> Path:
        """The children of the supervisor, so that the next one can end what a killed one left."""
        return self.home / "processes.json"

    @property
    def durable_data(self) -> Path:
        return self.home / "bus"

    @property
    def sockets(self) -> Path:
        inside = self.home / "run"
        if len(str(inside / "volatile.sock").encode()) < SOCKET_PATH_LIMIT:
            return inside
        digest = hashlib.sha256(str(self.home).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"llmos-{os.getuid()}-{digest}"

    @property
    def durable_socket(self) -> Path:
        return self.sockets / "durable.sock"

    @property
    def volatile_socket(self) -> Path:
        return self.sockets / "volatile.sock"

    def create(self) -> None:
        """Make the folders, readable by their owner alone."""
        for folder in (self.home, self.logs, self.durable_data, self.sockets):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
