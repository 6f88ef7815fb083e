"""The system of many nodes, as docker-compose.yml runs it: Kafka, Valkey, MinIO, PostgreSQL, and a process for each
service, without containers. Two schedulers, of which one leads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import httpx
import psutil

from llmos.client import LLMOS
from tests.e2e.backing_servers import SERVERS, BackingServers
from tests.e2e.compose_file import ROOT, ComposeFile
from tests.e2e.system import System
from tests.ports import free_ports_in_a_row
from tests.service_process import clean_environment
from tests.waiting import eventually

KEY = "sk-llmos-cluster"
SERVICES = {
    "registry": "registry",
    "scheduler": "scheduler",
    "standby": "scheduler",
    "gateway": "gateway",
    "trainer": "trainer",
    "inference": "inference",
}
"""Each process, and the service of docker-compose.yml that it runs."""
READY_S = 90
STOP_S = 60


class Cluster(System):
    """On servers of its own. Nothing starts a service again but `kill` and `up`: what ends by itself stays ended."""

    def __init__(self, home: Path, servers: BackingServers, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(home, settings)
        self.servers = servers
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        ports = free_ports_in_a_row(len(SERVICES))
        self._ports = {name: ports + number for number, name in enumerate(SERVICES)}
        self._compose = ComposeFile({**self.settings, **servers.secrets, "LLMOS_API_KEY": KEY})
        self.logs.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports['gateway']}"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    def up(self) -> None:
        self.servers.start()
        self.migrate()
        self.start()
        self.wait_until_ready()

    def migrate(self) -> None:
        """What the service of that name does, once for all others."""
        with (self.logs / "migrate.log").open("ab") as log:
            command = self._compose.command("migrate")
            done = subprocess.run(command, env=self.environment("migrate"), stdout=log, stderr=log, timeout=120)
        if done.returncode:
            raise AssertionError(f"migrate: exit {done.returncode}\n{self.tails()}")

    def start(self, names: Sequence[str] = tuple(SERVICES)) -> None:
        """Those that do not run. Does not wait for them."""
        for name in names:
            if name not in self.processes or self.processes[name].poll() is not None:
                self.processes[name] = self._launch(name)

    def stop(self, names: Sequence[str] = tuple(SERVICES)) -> None:
        """All at once; an exit code that is not 0 is an error."""
        ending = {name: process for name in names if (process := self.processes.pop(name, None))}
        for process in ending.values():
            process.send_signal(signal.SIGTERM)
        for name, process in ending.items():
            code = process.wait(STOP_S)
            assert code == 0, f"{name} ended with {code}\n{self.tails()}"

    def one_more(self, service: str, **settings: str) -> subprocess.Popen[str]:
        """A process of a service on another machine, as its own home says, with other settings. What it says comes on
        its stderr."""
        home = {"LLMOS_HOME": str(self.home / uuid4().hex), "LLMOS_PORT": "0"}
        return subprocess.Popen(
            self._compose.command(service),
            env={**self.environment(service), **home, **settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until_ready(self) -> None:
        for name in SERVICES:
            eventually(lambda name=name: self.missing(name) == {}, READY_S, f"{name} is ready")  # type: ignore[misc]

    def missing(self, name: str) -> dict[str, str] | None:
        """What `/readyz` of a process says that it waits for; None where it does not answer at all."""
        try:
            answer = httpx.get(f"http://127.0.0.1:{self._ports[name]}/readyz", timeout=20)
        except httpx.TransportError:
            return None
        found: dict[str, str] = answer.json()["missing"]
        assert (answer.status_code == 200) is (found == {})
        return found

    def down(self) -> None:
        self.stop()
        self.servers.kill(*SERVERS)

    def client(self) -> LLMOS:
        return LLMOS(self.url, KEY)

    def address(self) -> Mapping[str, str]:
        return {"LLMOS_URL": self.url, "LLMOS_API_KEY": KEY}

    def pid_of(self, name: str) -> int:
        return self.processes[name].pid

    def kill(self, name: str) -> None:
        if name in SERVERS:
            self.servers.kill(name)
            self.servers.start([name])
            return
        name = self._leader() if name == "scheduler" else name
        self.processes[name].kill()
        self.processes[name].wait()
        self.start([name])

    def descendants(self) -> list[psutil.Process]:
        alive = [psutil.Process(process.pid) for process in self.processes.values() if process.poll() is None]
        return [*alive, *(child for process in alive for child in process.children(recursive=True))]

    def kill_everything(self) -> None:
        super().kill_everything()
        self.servers.kill(*SERVERS)

    def environment(self, service: str, name: str = "") -> dict[str, str]:
        """Of a container of `service`, with the addresses of this cluster."""
        found = self._compose.environment(service)
        for theirs, ours in self.servers.addresses.items():
            found = {variable: value.replace(theirs, ours) for variable, value in found.items()}
        port = str(self._ports[name]) if name else "0"
        found |= {"LLMOS_HOME": str(self.home / (name or service)), "LLMOS_METRICS_PORT": port, "LLMOS_PORT": port}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**clean_environment(), **found, "PATH": path, "PYTHONPATH": str(ROOT)}

    def _launch(self, name: str) -> subprocess.Popen[bytes]:
        service = SERVICES[name]
        with (self.logs / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                self._compose.command(service),
                env=self.environment(service, name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _leader(self) -> str:
        def leads(name: str) -> bool:
            numbers = httpx.get(f"http://127.0.0.1:{self._ports[name]}/metrics").text
            return "llmos_scheduler_leads 1.0" in numbers

        return eventually(lambda: next(filter(leads, ("scheduler", "standby")), None), 60, "a leader") or ""
