"""What runs leave on this machine: a record and a workdir each, so that a restarted trainer can end and clear them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import structlog
from pydantic import ValidationError

from services.trainer.spawn import RUN_ID_VARIABLE
from shared.contracts.message import Value
from shared.processes import Life, birth_of, group_of, kill_all, living

log = structlog.get_logger(__name__)


class RunRecord(Value):
    """Which process is a run's. `birth` tells it from a later process with its pid."""

    run_id: str
    job_id: str
    attempt: int
    rank: int
    pid: int
    birth: str


class RunFolder:
    """`<folder>/<run_id>.json` and `<folder>/<run_id>/`, the run's workdir."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def workdir(self, run_id: str) -> Path:
        """An empty folder for the run."""
        folder = self._folder / run_id
        folder.mkdir(parents=True)
        return folder

    def record(self, run_id: str, job_id: str, attempt: int, rank: int, pid: int) -> None:
        record = RunRecord(
            run_id=run_id,
            job_id=job_id,
            attempt=attempt,
            rank=rank,
            pid=pid,
            birth=birth_of(pid) or "",
        )
        path = self._folder / f"{run_id}.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(record.model_dump_json())
        fresh.replace(path)

    def clear(self, run_id: str) -> None:
        """Delete the workdir, then the record: nothing is deleted that no record tells of."""
        workdir = self._folder / run_id
        try:
            if workdir.exists():
                shutil.rmtree(workdir)
            (self._folder / f"{run_id}.json").unlink(missing_ok=True)
        except OSError as error:
            log.warning("workdir_left", run_id=run_id, folder=str(workdir), reason=str(error))

    def end_leftovers(self) -> list[str]:
        """Kill what an earlier trainer of this node left running, and delete its workdirs. Returns their run_ids."""
        records = [record for path in sorted(self._folder.glob("*.json")) if (record := _read(path))]
        doomed = {life for record in records for life in _processes_of(record)}
        for life in doomed:
            log.info("leftover_killed", pid=life.pid)
        for life in kill_all(doomed):
            log.error("leftover_survives", pid=life.pid, reason="SIGKILL did not end it")
        found = sorted({path.stem for path in self._folder.iterdir()})
        for run_id in found:
            self.clear(run_id)
        for path in self._folder.glob("*.new"):
            path.unlink()
        return found


def _processes_of(record: RunRecord) -> list[Life]:
    """The child's group, and whatever carries its run_id in the environment, in a session of its own perhaps."""
    mark = f"{RUN_ID_VARIABLE}={record.run_id}".encode()
    marked = [life for life in living() if life.pid != os.getpid() and mark in _environment(life.pid)]
    return [*group_of(Life(record.pid, record.birth)), *marked]


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []  # gone by now, or another user's


def _read(path: Path) -> RunRecord | None:
    try:
        return RunRecord.model_validate_json(path.read_text())
    except (ValidationError, OSError) as error:
        log.warning("record_unreadable", path=str(path), reason=str(error))
        return None
