"""A job that trains nothing: steps, checkpoints, an artifact, and failures on demand. For tests and load."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from services.trainer.recipes.api import MadeOutput, RecipeContext, RecipeError, Stopped
from shared.contracts.artifacts import ArtifactKind
from shared.contracts.jobs import FailureReason
from shared.contracts.recipes import ProbeParams

CHECKPOINT = "probe.json"
GLANCE_S = 0.02
"""How often a step that lasts looks whether it should stop."""
CHUNK_BYTES = 1 << 20


def run(context: RecipeContext) -> list[MadeOutput]:
    """Take the steps that are left, and make the artifact."""
    probe = Probe(context, ProbeParams.model_validate(context.spec.params))
    probe.fail_if_due(0)
    for step in range(probe.start + 1, probe.params.steps + 1):
        probe.fail_if_due(step)
        probe.take_step(step)
    return [probe.output()] if context.leads else []


class Probe:
    """One run, from the saved step on."""

    def __init__(self, context: RecipeContext, params: ProbeParams) -> None:
        self.context = context
        self.params = params
        self.start = _saved_step(context.resume_from)
        if params.ignore_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def take_step(self, step: int) -> None:
        self._last_for(self.params.step_s, done=step - 1)
        if self.params.log_line:
            self.context.report.log(self.params.log_line)
        self.context.report.progress(step, self.params.steps, metrics={"loss": 1 / step})
        if self.params.checkpoint_every and step % self.params.checkpoint_every == 0:
            self._save(step)

    def fail_if_due(self, step: int) -> None:
        if self.params.fail_at_step == step and self.context.attempt <= self.params.fail_attempts:
            self._fail(step)

    def output(self) -> MadeOutput:
        folder = self.context.workdir / "output"
        folder.mkdir()
        pickled = self.params.fail_with == "pickle" and self.params.fail_at_step is not None
        _write(folder / ("pytorch_model.bin" if pickled else "probe.dat"), self.params.artifact_bytes)
        return MadeOutput(
            name=self.context.spec.output,
            kind=ArtifactKind.model if pickled else ArtifactKind.report,
            folder=folder,
            metadata={"format": "probe"},
            metrics={"steps": self.params.steps, "resumed_at": self.start},
        )

    def _last_for(self, duration_s: float, done: int) -> None:
        deadline = time.monotonic() + duration_s
        while True:
            self._stop_if_asked(done)
            if (left_s := deadline - time.monotonic()) <= 0:
                return
            time.sleep(min(left_s, GLANCE_S))

    def _stop_if_asked(self, done: int) -> None:
        if self.context.stopping():
            if done > self.start:
                self._save(done)
            raise Stopped

    def _save(self, step: int) -> None:
        folder = self.context.workdir / f"checkpoint-{step}"
        folder.mkdir(exist_ok=True)
        (folder / CHECKPOINT).write_text(json.dumps({"step": step}))
        self.context.report.checkpoint(step, folder, {"loss": 1 / step})

    def _fail(self, step: int) -> None:
        match self.params.fail_with:
            case "user":
                raise RecipeError(
                    FailureReason.bad_params, f"The probe was told to fail at step {step}", param="params"
                )
            case "crash":
                raise RuntimeError(f"the probe crashed at step {step}, as it was told")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "out_of_memory":
                raise MemoryError(f"the probe was told to run out of memory at step {step}")
            case "hang":
                while True:
                    time.sleep(GLANCE_S)
            case "pickle":
                """It shows at the end: see `output`."""


def _saved_step(folder: Path | None) -> int:
    return int(json.loads((folder / CHECKPOINT).read_text())["step"]) if folder else 0


def _write(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        for start in range(0, size_bytes, CHUNK_BYTES):
            file.write(os.urandom(min(CHUNK_BYTES, size_bytes - start)))
