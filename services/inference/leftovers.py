"""What this node's replicas leave on disk, so that a restarted agent ends processes and statuses nobody else would.

A record is there from before a replica's first status until after its tombstone.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog

from shared.processes import Life, birth_of, group_of, kill_all

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
    """The replica's leader may be dead and its engine's processes still be there."""
    if members := group_of(Life(record.pid, record.birth)):
        log.info("leftover_ended", replica=record.replica_id, pid=record.pid, processes=len(members))
        for life in kill_all(members):
            log.error("leftover_survives", replica=record.replica_id, pid=life.pid, reason="SIGKILL did not end it")
