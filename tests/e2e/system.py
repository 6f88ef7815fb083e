"""The whole system as a person starts it, in a home of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from llmos.client import LLMOS
from llmos.embedded.layout import Layout
from llmos.embedded.running import running
from tests.ports import free_port
from tests.waiting import eventually

# Quicker than the defaults, so that faults are seen in seconds.
ENVIRONMENT = {"LLMOS_HEARTBEAT_S": "1", "LLMOS_HEARTBEAT_TIMEOUT_S": "8", "LLMOS_BACKOFF_S": "0.2"}


class System:
    """`llmos up --detach` on one home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.layout = Layout(home)
        self.port = free_port()

    def llmos(self, *arguments: str, check: bool = True, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """One command of the command line."""
        done = subprocess.run(
            [sys.executable, "-m", "llmos", "--home", str(self.home), *arguments],
            env={**os.environ, **ENVIRONMENT, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if check and done.returncode:
            raise AssertionError(
                f"llmos {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}{self.tails()}"
            )
        return done

    def up(self) -> None:
        self.llmos("up", "--detach", "--port", str(self.port), timeout_s=240)

    def down(self) -> None:
        self.llmos("down", timeout_s=240)

    def client(self) -> LLMOS:
        return LLMOS(home=self.home)

    def pid_of(self, name: str) -> int:
        """A child of the supervisor, by its name, as it runs now."""
        entries = {entry["name"]: entry["pid"] for entry in json.loads(self.layout.processes_file.read_text())}
        return int(entries[name])

    def kill(self, name: str) -> None:
        """kill -9 of one process; returns when the supervisor has started it again."""
        pid = self.pid_of(name)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: self.pid_of(name) != pid, 30, f"{name} is started again")

    def kill_everything(self) -> None:
        """kill -9 of the supervisor and all that it started, at once."""
        here = running(self.layout)
        assert here is not None
        supervisor = psutil.Process(here.pid)
        everyone = [supervisor, *supervisor.children(recursive=True)]
        for process in everyone:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(everyone, timeout=20)

    def descendants(self) -> list[psutil.Process]:
        """Everything that runs below the supervisor."""
        here = running(self.layout)
        return psutil.Process(here.pid).children(recursive=True) if here else []

    def tails(self) -> str:
        """The ends of all logs, for a failed test."""
        files = sorted(self.layout.logs.glob("*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-1500:]}" for file in files)
