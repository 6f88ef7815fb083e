"""The whole system as a person starts it, in one of its two shapes. The end-to-end tests are the same for both."""

from __future__ import annotations

import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import psutil

from llmos.client import LLMOS
from tests.service_process import clean_environment

# Quicker than the defaults, so that faults are seen in seconds.
QUICK = {"LLMOS_HEARTBEAT_S": "1", "LLMOS_HEARTBEAT_TIMEOUT_S": "8", "LLMOS_BACKOFF_S": "0.2"}


class System(ABC):
    """A system on one machine, in a folder of its own. `settings` are LLMOS_* besides those of the shape."""

    def __init__(self, home: Path, settings: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.settings = {**QUICK, **(settings or {})}

    @abstractmethod
    def up(self) -> None:
        """Returns when it is ready; what it had kept is there again."""

    @abstractmethod
    def down(self) -> None:
        """In order; returns when nothing runs any more."""

    @abstractmethod
    def client(self) -> LLMOS: ...

    @abstractmethod
    def pid_of(self, name: str) -> int:
        """A service's process, as it runs now."""

    @abstractmethod
    def kill(self, name: str) -> None:
        """kill -9 of one part, a service or a server; returns when it was started again."""

    @abstractmethod
    def descendants(self) -> list[psutil.Process]:
        """Every process of it, its servers included."""

    @abstractmethod
    def address(self) -> Mapping[str, str]:
        """The environment in which the command finds it."""

    @property
    @abstractmethod
    def logs(self) -> Path:
        """The folder with a log of each part."""

    def kill_everything(self) -> None:
        """kill -9 of all of it, at once."""
        everyone = self.descendants()
        for process in everyone:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(everyone, timeout=20)

    def llmos(self, *arguments: str, check: bool = True, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """One command of the command line."""
        done = subprocess.run(
            [sys.executable, "-m", "llmos", "--home", str(self.home), *arguments],
            env={**clean_environment(), **self.settings, **self.address(), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if check and done.returncode:
            raise AssertionError(
                f"llmos {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}{self.tails()}"
            )
        return done

    def tails(self) -> str:
        """The ends of all logs, for a failed test."""
        files = sorted(self.logs.glob("*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-1500:]}" for file in files)
