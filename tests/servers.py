"""Real servers for tests: they start in a folder of their own, can be killed at any instruction, and come back."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from llmos.embedded.valkey_server import valkey_server


class ValkeyServer:
    """One Valkey on a unix socket, and on a port of this machine where one is given.

    `durable` is how the bus's server runs, else how the one for replies does.
    """

    def __init__(self, folder: Path, *, durable: bool, port: int = 0) -> None:
        self.folder = folder
        self.durable = durable
        self.port = port
        self.socket = folder / "s"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def unix_url(self) -> str:
        """As in LLMOS_REDIS_URL."""
        return f"unix://{self.socket}"

    @property
    def bus_url(self) -> str:
        """As in LLMOS_BUS_URL."""
        return f"valkey+unix://{self.socket}"

    def start(self, timeout_s: float = 20) -> None:
        """Returns when it answers; what it had kept is there again."""
        durability = ["--appendonly", "yes", "--appendfsync", "always"] if self.durable else ["--appendonly", "no"]
        options = ["--dir", str(self.folder), "--save", "", *durability]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(valkey_server()),
                    "--port",
                    str(self.port),
                    "--bind",
                    "127.0.0.1",
                    "--unixsocket",
                    str(self.socket),
                    *options,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + timeout_s
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"valkey did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.01)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self.socket.unlink(missing_ok=True)

    def client(self) -> redis.Redis:
        """A plain client, to look behind the adapters."""
        return redis.Redis(unix_socket_path=str(self.socket), retry=Retry(NoBackoff(), 0))

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


@contextmanager
def valkey(*, durable: bool) -> Iterator[ValkeyServer]:
    """A started server in a folder of its own, both gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="vk", dir="/tmp"))  # a socket's path may have only 107 bytes
    server = ValkeyServer(folder, durable=durable)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
