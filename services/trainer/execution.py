"""Inside the child: running one recipe, and turning whatever it raises into a last word."""

from __future__ import annotations

import importlib
import math
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pydantic import ValidationError

from services.trainer import protocol
from services.trainer.recipes.api import (
    Gang,
    MadeOutput,
    PeersLost,
    RecipeContext,
    RecipeError,
    RecipeRun,
    Reporter,
    Stopped,
)
from services.trainer.recipes.disk import is_disk_full
from shared.contracts.jobs import FailureReason, JobSpec
from shared.contracts.message import first_line
from shared.contracts.recipes import RECIPES

if TYPE_CHECKING:
    from services.trainer.child import Inbox

MODULES = {
    "probe": "services.trainer.recipes.probe",
    "pretrain": "services.trainer.recipes.pretrain",
    "sft": "services.trainer.recipes.sft",
    "import": "services.trainer.recipes.import_model",
}

OUT_OF_MEMORY_HINT = "Use a smaller batch_size or a shorter context, or a machine with more memory."
DISK_FULL_HINT = "Free space on the trainer's disk (its home folder and its cache), then submit the job again."

LastWord = protocol.Done | protocol.Failed | protocol.Halted


def execute(
    job_type: str, inbox: Inbox, reports: BinaryIO, stop_asked: threading.Event, listener: int | None = None
) -> LastWord:
    """Load the recipe while the inputs are on their way, wait for the word, run it. Never raises an Exception.

    `listener`: the socket on which rank 0 of a gang awaits the others.
    """
    try:
        recipe = _recipe(job_type)
        begin = inbox.begin()
        leads = begin.gang is None or begin.gang.rank == 0
        report = PipeReporter(inbox, reports) if leads else SilentReporter()
        context = _context(begin, report, stop_asked, listener)
        made = recipe(context)
        return protocol.Done([_made(output) for output in made])
    except Stopped:
        return protocol.Halted()
    except RecipeError as error:
        return protocol.Failed(error.reason, error.message, False, error.hint, error.param)
    except PeersLost as error:
        return protocol.Failed(FailureReason.lost, first_line(error), True)
    except Exception as error:  # whatever a library raises becomes the run's failure
        failure = failure_of(error)
        if failure.reason == FailureReason.crashed:  # the others are explained, and nobody's mistake in the code
            traceback.print_exc()
        return failure


def failure_of(error: Exception) -> protocol.Failed:
    """What an exception that no recipe foresaw means to the job."""
    if _is_out_of_memory(error):
        message = f"The training process ran out of memory: {first_line(error)}"
        return protocol.Failed(FailureReason.out_of_memory, message, False, OUT_OF_MEMORY_HINT)
    if is_disk_full(error):
        message = f"The trainer's disk is full: {first_line(error)}"
        return protocol.Failed(FailureReason.disk_full, message, False, DISK_FULL_HINT)
    return protocol.Failed(FailureReason.crashed, f"{type(error).__name__}: {first_line(error)}", True)


class PipeReporter:
    """Reporter over the pipe to the supervisor."""

    def __init__(self, inbox: Inbox, reports: BinaryIO) -> None:
        self._inbox = inbox
        self._reports = reports
        self._writing = threading.Lock()
        self._last_checkpoint: int | None = None

    def progress(
        self,
        step: int,
        total_steps: int | None = None,
        tokens: int = 0,
        eta_s: float | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        self._send(protocol.ProgressMade(step, total_steps, tokens, _finite(eta_s), finite_metrics(metrics)))

    def checkpoint(self, step: int, folder: Path, metrics: Mapping[str, float] | None = None) -> None:
        self.await_upload()
        self._last_checkpoint = step
        self._send(protocol.CheckpointMade(step, str(folder.absolute()), finite_metrics(metrics)))

    def await_upload(self) -> None:
        if self._last_checkpoint is not None:
            self._inbox.wait_uploaded(self._last_checkpoint)

    def log(self, line: str) -> None:
        print(line, flush=True)

    def _send(self, report: protocol.Report) -> None:
        line = protocol.encode(report)
        with self._writing:
            while line:
                line = line[self._reports.write(line) :]


class SilentReporter:
    """Of the ranks beside rank 0, which speaks for all."""

    def progress(
        self,
        step: int,
        total_steps: int | None = None,
        tokens: int = 0,
        eta_s: float | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None: ...

    def checkpoint(self, step: int, folder: Path, metrics: Mapping[str, float] | None = None) -> None: ...

    def await_upload(self) -> None: ...

    def log(self, line: str) -> None: ...


def finite_metrics(metrics: Mapping[str, float] | None) -> dict[str, float]:
    """As plain floats, without what JSON cannot carry (a diverged loss is NaN)."""
    return {name: float(value) for name, value in (metrics or {}).items() if math.isfinite(float(value))}


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _recipe(job_type: str) -> RecipeRun:
    if job_type not in MODULES:
        raise RecipeError(
            FailureReason.bad_params, f"{job_type!r} is no job type of this trainer: {', '.join(MODULES)}"
        )
    run: RecipeRun = importlib.import_module(MODULES[job_type]).run
    return run


def _context(
    begin: protocol.Begin, report: Reporter, stop_asked: threading.Event, listener: int | None
) -> RecipeContext:
    spec = JobSpec.model_validate(begin.spec)
    try:
        RECIPES[spec.type].params.model_validate(spec.params)
    except ValidationError as error:
        param = ".".join(str(part) for part in error.errors()[0]["loc"]) or None
        raise RecipeError(FailureReason.bad_params, first_line(error), param=param) from error
    return RecipeContext(
        spec=spec,
        inputs={name: Path(folder) for name, folder in begin.inputs.items()},
        workdir=Path(begin.workdir),
        resume_from=Path(begin.resume_from) if begin.resume_from else None,
        report=report,
        stopping=stop_asked.is_set,
        allow_local_models=begin.allow_local_models,
        allow_hub=begin.allow_hub,
        attempt=begin.attempt,
        gang=_gang(begin.gang, listener) if begin.gang else None,
    )


def _gang(seat: protocol.Gang, listener: int | None) -> Gang:
    host, _, port = seat.meeting.rpartition(":")
    return Gang(
        rank=seat.rank,
        size=seat.size,
        local_rank=seat.local_rank,
        local_size=seat.local_size,
        node_rank=seat.node_rank,
        host=host,
        port=int(port),
        rendezvous=seat.rendezvous,
        timeout_s=seat.timeout_s,
        backend=seat.backend,
        listener=listener,
    )


def _made(output: MadeOutput) -> protocol.OutputMade:
    return protocol.OutputMade(
        name=output.name,
        kind=output.kind,
        folder=str(output.folder.absolute()),
        metadata=output.metadata,
        parents=output.parents,
        metrics=finite_metrics(output.metrics),
    )


def _is_out_of_memory(error: Exception) -> bool:
    """torch has an error class for devices, and a RuntimeError with a known sentence for the CPU."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return (
        isinstance(error, MemoryError)
        or "OutOfMemoryError" in names
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    )
