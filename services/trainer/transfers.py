"""Moving a run's bytes: inputs from the store, checkpoints and outputs into it, one after the other.

The store may be away: every move is tried again until it works, the run is aborted, or patience ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from services.trainer import protocol
from shared.backoff import Backoff
from shared.contracts.artifacts import ArtifactKind, ArtifactPin, ManifestFile, run_prefix
from shared.contracts.jobs import CheckpointRef, DesiredAttempt, Output
from shared.store.cache import ArtifactCache
from shared.store.port import ObjectStore, StoreUnavailable
from shared.store.staging import stage_folder

T = TypeVar("T")

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 5.0
REPORT_EVERY_S = 2.0
MIB = 1 << 20


class Aborted(Exception):
    """The run stops: what is under way is no longer wanted."""


class Transfers:
    """One run's. Every method blocks; `abort` makes them raise Aborted, from any thread."""

    def __init__(
        self, store: ObjectStore, cache: ArtifactCache, run_id: str, patience_s: float, say: Callable[[str], None]
    ) -> None:
        self._store = store
        self._cache = cache
        self._run_id = run_id
        self._patience_s = patience_s
        self._say = say
        self._aborted = threading.Event()
        self._guard = threading.Lock()
        self._pulled: list[Path] = []
        self._uploaded: set[int] = set()

    def abort(self) -> None:
        self._aborted.set()

    def pull(self, desired: DesiredAttempt) -> tuple[dict[str, str], str | None]:
        """Local folders of all inputs and of the checkpoint to resume from. Raises StoreError, OSError, Aborted."""
        inputs = {name: self._pull_input(name, pin) for name, pin in desired.spec.inputs.items()}
        resume_from = self._pull_checkpoint(desired.resume_from) if desired.resume_from else None
        return inputs, resume_from

    def upload_checkpoint(self, desired: DesiredAttempt, made: protocol.CheckpointMade) -> CheckpointRef | None:
        """None where that step lies in the store already. Raises StoreError, OSError, Aborted."""
        if made.step in self._uploaded:
            return None
        key = f"{self._prefix(desired)}/checkpoints/{made.step}"
        metadata = {"job": desired.job_id, "task": desired.spec.type, "step": made.step, "metrics": made.metrics}
        self._stage(key, Path(made.folder), metadata, f"uploading the checkpoint of step {made.step}")
        self._uploaded.add(made.step)
        return CheckpointRef(
            step=made.step,
            key=key,
            attempt=desired.attempt,
            run_id=self._run_id,
            at=datetime.now(UTC),
            metrics=made.metrics,
        )

    def upload_output(self, desired: DesiredAttempt, made: protocol.OutputMade) -> Output:
        """Raises StoreError, OSError, Aborted; ValueError for a name or kind that is none."""
        parents = made.parents or [pin.ref for pin in desired.spec.inputs.values()]
        prefix = f"{self._prefix(desired)}/outputs/{made.name}"
        output = Output(name=made.name, kind=ArtifactKind(made.kind), staged_prefix=prefix, parents=parents)
        facts = {
            "job": desired.job_id,
            "task": desired.spec.type,
            "params": desired.spec.params,
            "metrics": made.metrics,
            "created": datetime.now(UTC).isoformat(),
        }
        self._stage(prefix, Path(made.folder), {**facts, **made.metadata}, f"uploading {made.name}")
        return output

    def release(self) -> None:
        """The pulled folders are no longer in use."""
        with self._guard:
            while self._pulled:
                self._cache.release(self._pulled.pop())

    def _pull_input(self, name: str, pin: ArtifactPin) -> str:
        meter = self._meter(f"pulling {name} ({pin.ref})")
        return self._kept(self._patiently(lambda: self._cache.pull(pin.manifest_key, meter)))

    def _pull_checkpoint(self, checkpoint: CheckpointRef) -> str:
        meter = self._meter(f"pulling the checkpoint of step {checkpoint.step}")
        folder = self._patiently(lambda: self._cache.pull_staged(checkpoint.key, meter))
        self._say(f"resuming from the checkpoint of step {checkpoint.step}")
        return self._kept(folder)

    def _kept(self, folder: Path) -> str:
        self._pulled.append(folder)
        if self._aborted.is_set():  # the run may be over, and nobody else would let go of it
            self.release()
            raise Aborted
        return str(folder)

    def _prefix(self, desired: DesiredAttempt) -> str:
        return run_prefix(desired.job_id, desired.attempt, self._run_id)

    def _stage(self, prefix: str, folder: Path, metadata: dict[str, Any], doing: str) -> None:
        staged: dict[str, ManifestFile] = {}
        self._patiently(lambda: stage_folder(self._store, prefix, folder, metadata, self._meter(doing), staged))

    def _patiently(self, move: Callable[[], T]) -> T:
        started_s, backoff = time.monotonic(), Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while True:
            self._stop_if_aborted()
            try:
                return move()
            except StoreUnavailable as error:
                if time.monotonic() - started_s > self._patience_s:
                    raise
                pause_s = backoff.next_s()
                self._say(f"the object store is away ({error}); trying again in {pause_s:g} s")
            self._aborted.wait(pause_s)

    def _meter(self, doing: str) -> Callable[[int], None]:
        """Says how far a long move is, and ends it when the run is aborted."""
        moved, due_s = 0, time.monotonic() + REPORT_EVERY_S

        def count(more: int) -> None:
            nonlocal moved, due_s
            self._stop_if_aborted()
            moved += more
            if time.monotonic() >= due_s:
                due_s = time.monotonic() + REPORT_EVERY_S
                self._say(f"{doing}: {moved / MIB:.0f} MiB")

        return count

    def _stop_if_aborted(self) -> None:
        if self._aborted.is_set():
            raise Aborted
