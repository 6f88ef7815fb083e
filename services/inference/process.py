"""A replica's process as its agent sees it: started, listened to, told what is wanted, ended."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec

from services.inference.control import (
    MAX_MESSAGE_BYTES,
    ReplicaSpec,
    Report,
    Wishes,
    decode_report,
    encode,
    socket_pair,
)
from services.inference.log_tail import log_tail
from shared.log_files import forget_old, rotate
from shared.processes import kill_group
from shared.settings import PREFIX, Settings

KEPT_LOGS = 40
"""Of replicas that have ended, two a replica at most; the newest stay for whoever asks why one failed."""
LOG_AGE_S = 7 * 24 * 3600
HANDED_ON = ("home", "node", "log_level", "traces_url", "redis_url", "requests_url")
"""Settings that a replica needs; no keys among them."""
SHARDS = re.compile(rb"checkpoint shards:\s+(\d+)%")


class Process(Protocol):
    """What the keeper needs of a replica's process."""

    pid: int

    def reports(self) -> AsyncIterator[Report]:
        """What the replica says, until its process has ended."""

    def wish(self, wishes: Wishes) -> None: ...

    async def ended(self) -> int:
        """The exit code, once it has ended."""

    async def kill(self) -> None:
        """Now, with everything that it started. What it has said can still be heard."""

    def close(self) -> None:
        """Let go of it, once it is killed and nobody listens any more."""

    def log_tail(self) -> list[str]:
        """The last lines that this start of it said."""

    def loading_percent(self) -> float | None:
        """How much of the weights the engine's log says it has read."""

    def bound_log(self) -> None:
        """Now and then, so that the log of one that runs for months does not fill the disk."""


class Launch(Protocol):
    async def __call__(self, spec: ReplicaSpec) -> Process:
        """Start the replica of this specification."""


class ReplicaProcess:
    """`python -m services.inference.replica` in a process group of its own."""

    def __init__(
        self, child: asyncio.subprocess.Process, line: socket.socket, spec: Path, log: Path, log_from: int
    ) -> None:
        self.pid = child.pid
        self._child = child
        self._line = line
        self._spec = spec
        self._log = log
        self._log_from = log_from

    async def reports(self) -> AsyncIterator[Report]:
        loop = asyncio.get_running_loop()
        while True:
            try:
                raw = await loop.sock_recv(self._line, MAX_MESSAGE_BYTES)
            except OSError:
                raw = b""
            if not raw:
                return
            yield decode_report(raw)

    def wish(self, wishes: Wishes) -> None:
        with suppress(OSError):  # it has ended: that is seen elsewhere
            self._line.send(encode(wishes))

    async def ended(self) -> int:
        return await self._child.wait()

    async def kill(self) -> None:
        kill_group(self.pid)
        await self._child.wait()
        kill_group(self.pid)  # what it started in the instant between
        self._line.shutdown(socket.SHUT_RDWR)  # who listens hears the end; a closed descriptor would be another's soon
        self._spec.unlink(missing_ok=True)

    def close(self) -> None:
        self._line.close()

    def log_tail(self) -> list[str]:
        return log_tail(self._log, self._log_from)

    def loading_percent(self) -> float | None:
        found = SHARDS.findall("\n".join(self.log_tail()[-20:]).encode())
        return float(found[-1]) if found else None

    def bound_log(self) -> None:
        with suppress(OSError):  # it is tried again, and a replica does not depend on its log
            self._log_from = min(self._log_from, rotate(self._log))


class Launcher:
    """Starts replicas of this node; what they say goes to `home`/logs/replica-<id>.log, which stays for a while.

    Made when none of them runs: specifications that are there then were left by a killed agent.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._specs = folder / "specs"
        self._logs = settings.home / "logs"
        for needed in (self._specs, self._logs):
            needed.mkdir(parents=True, exist_ok=True)
        for left in self._specs.glob("*.json"):
            left.unlink()

    async def __call__(self, spec: ReplicaSpec) -> ReplicaProcess:
        path = self._specs / f"{spec.replica_id}.json"
        log = self._logs / f"replica-{spec.replica_id}.log"
        path.write_bytes(encode(msgspec.structs.replace(spec, log_file=str(log))))
        self._forget_old_logs()
        log_from = rotate(log)
        ours, theirs = socket_pair()
        ours.setblocking(False)
        with log.open("ab") as output, theirs:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "services.inference.replica", str(path)),
                *(str(theirs.fileno()), str(os.getpid())),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env=replica_environment(self._settings),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        return ReplicaProcess(child, ours, path, log, log_from)

    def _forget_old_logs(self) -> None:
        """All but those of replicas that run: their specifications are there."""
        running = {f"replica-{spec.stem}.log" for spec in self._specs.glob("*.json")}
        ended = [log for log in self._logs.glob("replica-*.log*") if log.name.removesuffix(".1") not in running]
        forget_old(ended, KEPT_LOGS, LOG_AGE_S, time.time())


def replica_environment(settings: Settings) -> dict[str, str]:
    """This process's environment with the settings that a replica needs and no others."""
    foreign = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    own = {PREFIX + name.upper(): str(getattr(settings, name)) for name in HANDED_ON}
    return {**foreign, **own, "PYTHONUNBUFFERED": "1"}
