"""A gateway process on a bus, for the benchmarks that ask one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.ports import free_port
from tests.servers import valkey
from tests.service_process import start

KEY = {"Authorization": "Bearer sk-llmos-benchmark"}
UNBOUNDED = {"MAX_QUEUED_JOBS": "10000000", "MAX_UNPUBLISHED": "10000000"}
PATIENCE_S = 900


@dataclass(frozen=True)
class Gateway:
    """`ready_s`: from its start until `/readyz` said so."""

    url: str
    pid: int
    ready_s: float


@contextmanager
def gateway(bus_url: str) -> Iterator[Gateway]:
    """A new one with an empty database, ready; ended in order. Raises RuntimeError with its log."""
    with tempfile.TemporaryDirectory(prefix="llmos-bench-") as home, valkey(durable=False) as volatile:
        port = free_port()
        ours = {"HOME": home, "BUS_URL": bus_url, "REDIS_URL": volatile.unix_url, "PORT": str(port), **UNBOUNDED}
        ours["API_KEY"] = KEY["Authorization"].removeprefix("Bearer ")
        others = {name: value for name, value in os.environ.items() if not name.startswith("LLMOS_")}
        environment = {**others, **{f"LLMOS_{name}": value for name, value in ours.items()}}
        begun = time.perf_counter()
        log = Path(home) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "services.gateway"], env=environment, stdout=out, stderr=out
            )
        try:
            url = f"http://127.0.0.1:{port}"
            _await_ready(url, process, log)
            yield Gateway(url, process.pid, time.perf_counter() - begun)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@contextmanager
def scheduler(bus_url: str) -> Iterator[None]:
    """A new one with an empty database, started; ended in order."""
    with tempfile.TemporaryDirectory(prefix="llmos-bench-") as home:
        process = start("scheduler", Path(home), bus_url, Path(home) / "log", LLMOS_METRICS_PORT="0")
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _await_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            if httpx.get(f"{url}/readyz", timeout=10).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the gateway did not get ready:\n{log.read_text()[-2000:]}")
        time.sleep(0.02)
