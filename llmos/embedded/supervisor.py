"""Starts the system, keeps it up, stops it in order."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from llmos.embedded.address import check_port, not_ready, url_of
from llmos.embedded.errors import AlreadyUp, StartInterrupted, UpError
from llmos.embedded.layout import Layout
from llmos.embedded.processes import Child, Program, end_leftovers, record, service
from llmos.embedded.running import LOCK_PATIENCE_S, Running, lock_home, running
from llmos.embedded.valkey_server import valkey_server
from llmos.errors import in_words
from shared.settings import load_settings

SERVICES = ("registry", "scheduler", "gateway", "trainer", "inference")
STOP_ORDER = ("inference", "trainer", "gateway", "scheduler", "registry", "replies", "bus")
GRACE_S = 10.0
REPORTING_S = {"inference": 15.0, "trainer": 30.0}
"""Beyond the time that the settings give running answers and last checkpoints: to upload and to report."""
CRASHES_AT_START = 3
START_S = 180.0
"""Long, since a big append-only file is read before the queues answer."""
ADVICE = {
    errno.ENOSPC: "Make room there",
    errno.EDQUOT: "Make room there",
    errno.EROFS: "Make it writable",
    errno.EACCES: "Give it back to its owner",
    errno.EPERM: "Give it back to its owner",
}
"""What to do about a home that cannot be written."""


class Supervisor:
    """The processes of one home. `start`, then `tend` now and then, then `stop`."""

    def __init__(self, layout: Layout, host: str, port: int) -> None:
        self.layout = layout
        self.host = host
        self.port = port
        self.children: dict[str, Child] = {}
        self._lock: IO[str] | None = None
        self._grace_s: dict[str, float] = {}
        self._asked_to_stop: Callable[[], bool] = lambda: False
        self._timeout_s = START_S
        self._ready_by = 0.0

    @property
    def url(self) -> str:
        """Where this machine reaches the gateway."""
        return url_of(self.host, self.port)

    def start(
        self,
        on_step: Callable[[str], None] = lambda _: None,
        timeout_s: float = START_S,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start everything and return when the gateway can serve. Raises UpError, SettingsError, StartInterrupted."""
        self._asked_to_stop = asked_to_stop
        self._timeout_s, self._ready_by = timeout_s, time.monotonic() + timeout_s
        settings = load_settings(home=self.layout.home)
        self._grace_s = {
            "inference": settings.drain_timeout_s + REPORTING_S["inference"],
            "trainer": settings.stop_grace_s + REPORTING_S["trainer"],
        }
        try:
            self._start(on_step)
        except OSError as error:
            raise unusable(self.layout, error) from error

    def _start(self, on_step: Callable[[str], None]) -> None:
        self.layout.create()
        self._take_lock()
        for name in end_leftovers(self.layout.processes_file):
            on_step(f"ended {name}, which a killed start had left")
        check_port(self.host, self.port)
        for program in (self._bus(), self._replies()):
            self._launch(program)
        self._await_valkey(self.layout.durable_socket, "bus")
        self._await_valkey(self.layout.volatile_socket, "replies")
        on_step("queues are up")
        for name in SERVICES:
            self._launch(service(name, self._environment()))
        self._await_gateway(on_step)

    def tend(self, on_step: Callable[[str], None] = lambda _: None) -> None:
        """Start again what has died. What the machine refuses now (a full disk) is tried again later."""
        restarted = False
        for name, child in self.children.items():
            try:
                if child.tend():
                    restarted = True
                    on_step(f"{name} had ended; started again")
            except OSError as error:
                on_step(f"{name} has ended and cannot be started: {error}")
        if restarted:
            try:
                self._record()
            except OSError as error:
                on_step(f"cannot write down who runs: {error}")

    def stop(self, on_step: Callable[[str], None] = lambda _: None) -> None:
        """Stop in order: those who work first, the queues last, so that every last word is kept. Nothing happens
        where the lock was never held: what runs then is another's."""
        if self._lock is None:
            return
        for name in STOP_ORDER:
            child = self.children.get(name)
            if child and child.process:
                on_step(name)
                child.stop(self._grace_s.get(name, GRACE_S))
        self.layout.processes_file.unlink(missing_ok=True)
        self._lock.truncate(0)
        self._lock.close()
        self._lock = None

    def _take_lock(self) -> None:
        lock = self.layout.lock_file.open("a+")
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while not lock_home(lock):
            other = running(self.layout)
            if other or time.monotonic() > deadline:
                lock.close()
                raise already_up(self.layout, other)
            time.sleep(0.01)
        lock.seek(0)
        lock.truncate()
        lock.write(json.dumps({"pid": os.getpid(), "url": self.url}))
        lock.flush()
        self._lock = lock

    def _launch(self, program: Program) -> None:
        self._go_on()
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
        return [str(valkey_server()), *listen, *options, "--daemonize", "no"]

    def _environment(self) -> dict[str, str]:
        return {
            "LLMOS_HOME": str(self.layout.home),
            "LLMOS_BUS_URL": f"valkey+unix://{self.layout.durable_socket}",
            "LLMOS_REDIS_URL": f"unix://{self.layout.volatile_socket}",
            "LLMOS_HOST": self.host,
            "LLMOS_PORT": str(self.port),
            "LLMOS_METRICS_PORT": "0",  # one port cannot be everybody's
        }

    def _await_valkey(self, socket_file: Path, name: str) -> None:
        # Without tries of its own, which take seconds: we look again at once, and whether somebody wants us to stop.
        client = redis.Redis(unix_socket_path=str(socket_file), socket_timeout=2, retry=Retry(NoBackoff(), 0))
        while True:
            self._go_on()
            try:
                client.ping()
                client.close()
                return
            except redis.RedisError as error:
                self._check_alive(name)
                if time.monotonic() > self._ready_by:
                    raise self._too_late(f"{name} does not answer", str(error)) from error
                time.sleep(0.02)

    def _await_gateway(self, on_step: Callable[[str], None]) -> None:
        said = ""
        while True:
            self._go_on()
            self.tend()
            for name, child in self.children.items():
                if child.restarts >= CRASHES_AT_START:
                    self._check_alive(name)
            missing = not_ready(self.url)
            if missing is None:
                on_step(f"gateway answers at {self.url}")
                return
            if missing and missing != said:
                on_step(f"waiting: {missing}")
                said = missing
            if time.monotonic() > self._ready_by:
                for name in SERVICES:
                    self._check_alive(name)
                raise self._too_late("the gateway is not ready", missing or "no answer")
            time.sleep(0.05)

    def _go_on(self) -> None:
        if self._asked_to_stop():
            raise StartInterrupted

    def _too_late(self, what: str, why: str) -> UpError:
        advice = f"Look into {self.layout.logs}, or give it more time with --timeout."
        return UpError(f"{what} after {self._timeout_s:g} s: {why}. {advice}")

    def _check_alive(self, name: str) -> None:
        child = self.children[name]
        if not child.running:
            raise UpError(f"{name} does not start; the end of {child.log_file}:\n" + "\n".join(child.last_lines()))


def already_up(layout: Layout, other: Running | None) -> AlreadyUp:
    where = f" (pid {other.pid}, {other.url})" if other else ""
    return AlreadyUp(
        f"LLM OS is already up on {layout.home}{where}. "
        "Look with `llmos status`, stop it with `llmos down`, or give another folder with --home."
    )


def unusable(layout: Layout, error: OSError) -> UpError:
    """The home's disk is full or read-only, or it is another user's, or it is no folder at all."""
    advice = ADVICE.get(error.errno or 0)
    advice = f"{advice}, or give" if advice else "Give"
    return UpError(f"cannot start on {layout.home}: {in_words(error)}. {advice} another folder with --home.")
