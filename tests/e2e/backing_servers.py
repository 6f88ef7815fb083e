"""The four servers that a cluster stands on: real processes, which can be killed and come back with what they kept."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from tests.kafka_server import mortal_kafka
from tests.ports import free_ports_in_a_row
from tests.postgres_server import postgres_server
from tests.s3_server import ACCESS_KEY, SECRET_KEY, MinioServer
from tests.servers import ValkeyServer

SERVERS = ("bus", "replies", "store", "database")
"""By what they are for: Kafka, Valkey, MinIO, PostgreSQL."""


class Server(Protocol):
    def start(self) -> Any:
        """Returns when it answers."""

    def kill(self) -> None:
        """kill -9."""


class BackingServers:
    """They are `there` or not. `addresses` and `secrets` are what docker-compose.yml has for them."""

    def __init__(self, servers: Mapping[str, Server], addresses: Mapping[str, str]) -> None:
        self.addresses = addresses
        self.secrets = {
            "MINIO_ROOT_USER": ACCESS_KEY,
            "MINIO_ROOT_PASSWORD": SECRET_KEY,
            **{f"{name.upper()}_DB_PASSWORD": f"{name}-secret" for name in ("gateway", "scheduler", "registry")},
        }
        self._servers = servers
        self.there = set(servers)

    def kill(self, *names: str) -> None:
        for name in names:
            self._servers[name].kill()
            self.there.discard(name)

    def start(self, names: Iterable[str] = SERVERS) -> None:
        """Those that are not there, side by side."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda name: self._servers[name].start(), set(names) - self.there))
        self.there |= set(names)


@contextmanager
def backing_servers() -> Iterator[BackingServers]:
    """Started, with the databases that deploy/postgres makes, without topics and bucket. Gone afterwards."""
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmos-servers-", dir="/tmp")))
        valkey = ValkeyServer(folder, durable=False, port=free_ports_in_a_row(1))
        minio = MinioServer(folder / "minio")
        stack.callback(valkey.kill)
        stack.callback(minio.kill)
        others: list[Future[Any]] = [pool.submit(valkey.start), pool.submit(minio.start)]
        postgres = stack.enter_context(postgres_server())
        kafka = stack.enter_context(mortal_kafka())
        for other in others:
            other.result()
        servers: dict[str, Server] = {"bus": kafka, "replies": valkey, "store": minio, "database": postgres}
        addresses = {
            "kafka:9092": kafka.address,
            "valkey:6379": f"127.0.0.1:{valkey.port}",
            "minio:9000": minio.endpoint,
            "postgres:5432": f"127.0.0.1:{postgres.port}",
        }
        backing = BackingServers(servers, addresses)
        for name in ("gateway", "scheduler", "registry"):
            postgres.new_service(name, backing.secrets[f"{name.upper()}_DB_PASSWORD"])
        yield backing
