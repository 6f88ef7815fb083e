"""What happens around the steps of a trainer: reports, checkpoints, validation's verdict, and an orderly stop.

transformers' Trainer calls on_step_end, on_log, on_evaluate, on_save, in this order. So a checkpoint is only saved of a
state whose loss was looked at, and it holds the account up to its own step.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback

from services.trainer.recipes.api import RecipeContext, RecipeError, Stopped
from services.trainer.recipes.crew import Crew
from services.trainer.recipes.ledger import FOLDER, Ledger, whole_checkpoints
from shared.contracts.jobs import FailureReason

SHOWN: tuple[str, ...] = ("loss", "learning_rate", "grad_norm")
CHECKPOINTS = "checkpoints"
"""The folder within the run's own where a trainer saves."""
SPEED_STEPS = 20
"""The steps over which speed is averaged for what is left."""


class EvaluationCut(Exception):
    """A validation was ended in the middle, because a pause or cancel was asked for."""


class Watch(TrainerCallback):  # type: ignore[misc]  # transformers is not followed by mypy
    """Watches one run. `stopped` says that it ended because a pause or cancel was asked for.

    Every rank of a crew has one: their accounts are the same, and they stop at the same step. Rank 0's alone saves.
    """

    def __init__(
        self,
        context: RecipeContext,
        ledger: Ledger,
        crew: Crew,
        save_total_limit: int,
        patience: int | None = None,
        save_best: Callable[[Path], None] | None = None,
    ) -> None:
        self.context = context
        self.ledger = ledger
        self.crew = crew
        self.save_total_limit = save_total_limit
        self.patience = patience
        self.save_best = save_best
        self.stopped = False
        self.best = context.workdir / "best"
        self.runs = context.workdir / "runs"
        self.board = SummaryWriter(str(self.runs))
        self.checkpoints = whole_checkpoints(context.workdir / CHECKPOINTS)
        self.early = False
        self._mark = time.monotonic()
        self._step_seconds: deque[float] = deque(maxlen=SPEED_STEPS)
        self._logged = (ledger.tokens, ledger.seconds)
        self._shared_tokens = ledger.tokens

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._mark = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.monotonic()
        self.ledger.seconds += now - self._mark
        self._step_seconds.append(now - self._mark)
        self._mark = now
        tokens, stopping = self.crew.total(self.ledger.tokens - self._shared_tokens, self.context.stopping())
        self.ledger.tokens = self._shared_tokens = self._shared_tokens + tokens
        if stopping:
            self.stopped = True
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
        # A loss that is not a number must be seen before its state is saved.
        control.should_log = control.should_log or control.should_save

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        step = state.global_step
        for what in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(what, 0.0)):
                raise _diverged(what.replace("grad_norm", "gradient"), logs[what], step, args.learning_rate)
        self.ledger.trained(step, logs["loss"])
        metrics: dict[str, float] = {name: float(logs[name]) for name in SHOWN if name in logs}
        metrics["tokens_per_second"] = self._speed()
        self._tell(state, metrics)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.crew.any(self.context.stopping()):
            self.stopped = True
            raise EvaluationCut

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        self._mark = time.monotonic()
        loss = metrics.get("eval_loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise _diverged("validation loss", loss, state.global_step, args.learning_rate)
        better = self.ledger.evaluated(state.global_step, loss)
        self.context.report.log(f"step {state.global_step}: validation loss {loss:.4f}")
        self._tell(state, {"eval_loss": loss})
        if self.patience is None:
            return
        if better and self.save_best:
            self.save_best(self.best)
        if self.ledger.evaluations_without_gain >= self.patience:
            self.context.report.log(
                f"early stopping at step {state.global_step}: the validation loss has not fallen below "
                f"{self.ledger.best_eval_loss:.4f} (step {self.ledger.best_step}) for {self.patience} validations"
            )
            self.early = control.should_training_stop = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.ledger.finished = self.early or state.global_step >= state.max_steps
        self._gather_random_states(folder)
        if self.crew.leads:
            self._keep(state, folder)
        else:
            shutil.rmtree(folder)
        self._mark = time.monotonic()

    def leave_if_stopped(self, also: bool = False) -> None:
        """Raises Stopped. The ranks leave together, after rank 0's checkpoint: the first to go ends the attempt."""
        if not (self.stopped or also):
            return
        if self.crew.size > 1:
            self.context.report.await_upload()
            self.crew.total(0)
        raise Stopped

    def _gather_random_states(self, folder: Path) -> None:
        """transformers leaves every rank's own beside it; the checkpoint that is kept needs all."""
        if self.crew.size > 1:
            for rank, state in enumerate(self.crew.gathered((folder / _rng_file(self.crew.rank)).read_bytes())):
                (folder / _rng_file(rank)).write_bytes(state)

    def _keep(self, state: Any, folder: Path) -> None:
        self.board.flush()
        shutil.copytree(self.runs, folder / FOLDER / "runs", dirs_exist_ok=True)
        if self.best.exists():
            shutil.copytree(self.best, folder / FOLDER / "best", dirs_exist_ok=True)
        self.ledger.save(folder)
        self.context.report.checkpoint(state.global_step, folder, self.ledger.metrics())
        # That call awaited the upload of the checkpoint before; this one may still be on its way.
        self.checkpoints = [path for path in self.checkpoints if path != folder] + [folder]
        while len(self.checkpoints) > self.save_total_limit:
            shutil.rmtree(self.checkpoints.pop(0))

    def close(self) -> None:
        self.board.close()

    def _speed(self) -> float:
        """Tokens per second since the last report."""
        tokens, seconds = self._logged
        self._logged = (self.ledger.tokens, self.ledger.seconds)
        passed = self.ledger.seconds - seconds
        return (self.ledger.tokens - tokens) / passed if passed > 0 else self.ledger.tokens_per_second

    def _tell(self, state: Any, metrics: dict[str, float]) -> None:
        step, total = state.global_step, state.max_steps
        for name, value in metrics.items():
            self.board.add_scalar(name, value, step)
        seconds = sum(self._step_seconds) / len(self._step_seconds) if self._step_seconds else None
        eta_s = seconds * max(0, total - step) if seconds is not None and total else None
        self.context.report.progress(step, total or None, self.ledger.tokens, eta_s, metrics)


def _rng_file(rank: int) -> str:
    return f"rng_state_{rank}.pth"


def restore(context: RecipeContext) -> None:
    """Bring back what an earlier attempt left in its checkpoint beside the trainer's state."""
    if context.resume_from is None:
        return
    for name in ("runs", "best"):
        source = context.resume_from / FOLDER / name
        if source.is_dir():
            shutil.copytree(source, context.workdir / name, dirs_exist_ok=True)


def _diverged(what: str, value: float, step: int, learning_rate: float) -> RecipeError:
    return RecipeError(
        FailureReason.bad_params,
        f"The {what} became {'NaN' if math.isnan(value) else 'infinite'} at step {step}",
        f"Lower the learning rate (it is {learning_rate:g}), for instance to {learning_rate / 10:g}.",
        "learning_rate",
    )
