"""What this node's replicas leave on disk, so that a restarted agent ends processes and statuses nobody else would.

A record is there from before a replica's first status until after its tombstone.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
import structlog

from shared.processes import birth_of, kill_group

log = structlog.get_logger(__name__)


class Record(msgspec.Struct, frozen=True):
    """A replica of this node, and its process if one was started. `birth` tells it from a later one of that pid."""

    replica_id: str
    pid: int = 0
    birth: str = ""


class Leftovers:
    """The records in `folder`, one file a replica."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def note(self, replica_id: str, pid: int = 0) -> None:
        """Written whole or not at all. A full disk keeps no replica from serving: without its record, one that is left
        over still ends by itself."""
        record = Record(replica_id, pid, (birth_of(pid) or "") if pid else "")
        fresh = self._path(replica_id).with_suffix(".new")
        try:
            fresh.write_bytes(msgspec.json.encode(record))
            fresh.replace(self._path(replica_id))
        except OSError as error:
            log.warning("replica_not_recorded", replica=replica_id, reason=str(error))

    def forget(self, replica_id: str) -> None:
        self._path(replica_id).unlink(missing_ok=True)

    def end_all(self) -> list[str]:
        """Kill what an earlier agent left running. Returns the replicas that it kept."""
        replicas = []
        for path in self._folder.glob("*.json"):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=Record)
            except msgspec.DecodeError:
                path.unlink()  # written by no version of this agent
                continue
            replicas.append(record.replica_id)
            if record.pid:
                _end_group(record)
        return replicas

    def _path(self, replica_id: str) -> Path:
        return self._folder / f"{replica_id}.json"


def _end_group(record: Record) -> None:
    """Kill the group that the replica led. Its leader may be dead and its engine's processes still be there."""
    if birth_of(record.pid) not in (None, record.birth):
        return  # another process has that number now, and so its group
    members = [process for process in psutil.process_iter() if _in_group(process, record.pid)]
    if members:
        log.info("leftover_ended", replica=record.replica_id, pid=record.pid, processes=len(members))
        kill_group(record.pid)
        psutil.wait_procs(members, timeout=5)


def _in_group(process: psutil.Process, group: int) -> bool:
    with suppress(ProcessLookupError):
        return os.getpgid(process.pid) == group
    return False
