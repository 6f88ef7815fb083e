"""The system of one machine: `llmos up --detach` on one home."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import psutil

from llmos.client import LLMOS
from llmos.embedded.layout import Layout
from llmos.embedded.running import running
from tests.e2e.system import System
from tests.ports import free_port
from tests.waiting import eventually


class Embedded(System):
    """Its supervisor starts again what was killed."""

    def __init__(self, home: Path, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(home, settings)
        self.layout = Layout(home)
        self.port = free_port()

    def up(self) -> None:
        self.llmos("up", "--detach", "--port", str(self.port), timeout_s=240)

    def down(self) -> None:
        self.llmos("down", timeout_s=240)

    def client(self) -> LLMOS:
        return LLMOS(home=self.home)

    def address(self) -> Mapping[str, str]:
        return {}

    @property
    def logs(self) -> Path:
        return self.layout.logs

    def pid_of(self, name: str) -> int:
        entries = {entry["name"]: entry["pid"] for entry in json.loads(self.layout.processes_file.read_text())}
        return int(entries[name])

    def kill(self, name: str) -> None:
        pid = self.pid_of(name)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: self.pid_of(name) != pid, 30, f"{name} is started again")

    def descendants(self) -> list[psutil.Process]:
        here = running(self.layout)
        if here is None:
            return []
        supervisor = psutil.Process(here.pid)
        return [supervisor, *supervisor.children(recursive=True)]
