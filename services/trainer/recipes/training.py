"""One training, whatever the recipe: arguments, batches that fit, resume, stop, and the figures at the end."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback
from transformers.utils.logging import disable_progress_bar

from services.trainer.recipes.api import RecipeContext, RecipeError
from services.trainer.recipes.batch_size import BatchSize, ModelSize, choose_batch_size
from services.trainer.recipes.callbacks import CHECKPOINTS, EvaluationCut, Watch, restore
from services.trainer.recipes.crew import Crew
from services.trainer.recipes.environment import cpu_count, machine
from services.trainer.recipes.ledger import Ledger, whole_checkpoints
from services.trainer.recipes.precision import ChosenPrecision
from shared.contracts.jobs import FailureReason
from shared.contracts.recipes import TrainingParams

TIMES = 10
"""Validations, and checkpoints, of a run that does not say how often."""


@dataclass(frozen=True)
class Rows:
    """What there is to train on: rows, the tokens of the longest, and the rows held out for validation.

    `mark` stands for what else must be alike on all ranks.
    """

    count: int
    longest: int
    validation: int = 0
    mark: str = ""


@dataclass(frozen=True)
class Trained:
    """A finished training: `trainer.model` has the last weights, or the best where early stopping looked for them.

    `runs` is the folder of the TensorBoard files.
    """

    trainer: Any
    ledger: Ledger
    runs: Path


MakeTrainer = Callable[[dict[str, Any], Ledger], Any]
"""A fresh model in a fresh trainer (a `Measured` one), from the arguments that all recipes share."""


class Measured:
    """A mixin for trainers: counts the real tokens that the collator found, and ends a validation that must stop."""

    ledger: Ledger
    args: Any
    model: Any
    control: Any

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        if self.args.world_size > 1 and model is self.model:
            raise RuntimeError("The model is not wrapped for several ranks: each would train one of its own")
        tokens = inputs.pop("real_tokens")
        loss = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        self.ledger.tokens += tokens
        return loss

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        inputs.pop("real_tokens", None)
        return super().prediction_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        try:
            # A data loader draws a seed. Training must go on with the same random numbers, validated or not.
            with torch.random.fork_rng():
                metrics: dict[str, float] = super().evaluate(*args, **kwargs)  # type: ignore[misc]
        except EvaluationCut:
            self.control.should_save = self.control.should_training_stop = True
            return {}
        return metrics

    def validate_first(self) -> None:
        """A validation before training. accelerate takes a model that it prepared for validation as prepared for
        training too, and would not have the ranks share their gradients (accelerate 1.15, `prepare_model`)."""
        self.evaluate()
        if self.args.world_size > 1:
            vars(self.model).pop("_is_accelerate_prepared", None)

    def take_weights(self, checkpoint: Path) -> None:
        """Load the weights of a checkpoint, without training on."""
        self._load_from_checkpoint(str(checkpoint))  # type: ignore[attr-defined]


def train(
    context: RecipeContext,
    params: TrainingParams,
    precision: ChosenPrecision,
    rows: Rows,
    size: ModelSize,
    make_trainer: MakeTrainer,
    crew: Crew,
) -> Trained:
    """Train to the end, in smaller batches where memory runs out. Raises Stopped, RecipeError or PeersLost."""
    with crew.noticing_loss():
        crew.alike(f"{rows.count} rows of up to {rows.longest} tokens, {rows.validation} held out; {rows.mark}")
        return _train(context, params, precision, rows, size, make_trainer, crew)


def _train(
    context: RecipeContext,
    params: TrainingParams,
    precision: ChosenPrecision,
    rows: Rows,
    size: ModelSize,
    make_trainer: MakeTrainer,
    crew: Crew,
) -> Trained:
    torch.set_num_threads(cpu_count())
    disable_progress_bar()
    restore(context)
    resume = context.resume_from
    batch: BatchSize | None = _first_batch(params, precision, rows, size, Ledger.load(resume), crew)
    context.report.log(f"computing in {precision.reason}")
    while batch is not None:
        context.report.log(f"batch size {batch.reason}")
        try:
            return _run(context, params, precision, rows, batch, resume, make_trainer, crew)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if crew.size > 1:  # the others are in the middle of this step and cannot go back
                raise _too_large(batch) from error
        batch = batch.smaller()
        _free_memory()
        resume = next(reversed(whole_checkpoints(context.workdir / CHECKPOINTS)), context.resume_from)
    raise RecipeError(
        FailureReason.out_of_memory,
        f"Memory ran out with a single row of {rows.longest} tokens",
        "Use shorter rows (max_length, context_length), LoRA instead of full fine-tuning, a smaller model, or a "
        "machine with more memory.",
    )


def _too_large(batch: BatchSize) -> RecipeError:
    return RecipeError(
        FailureReason.out_of_memory,
        f"Memory ran out on one of several ranks, with a batch size of {batch.batch_size}",
        f"Set batch_size to {max(1, batch.batch_size // 2)} and gradient_accumulation to {2 * batch.accumulation}, "
        "or use shorter rows.",
        "batch_size",
    )


def _run(
    context: RecipeContext,
    params: TrainingParams,
    precision: ChosenPrecision,
    rows: Rows,
    batch: BatchSize,
    resume: Path | None,
    make_trainer: MakeTrainer,
    crew: Crew,
) -> Trained:
    ledger = Ledger.load(resume)
    ledger.take_batch(batch)
    trainer = make_trainer(_arguments(context, params, precision, rows, batch, crew), ledger)
    watch = Watch(context, ledger, crew, params.save_total_limit, params.early_stopping_patience, trainer.save_model)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(watch)
    try:
        if rows.validation and ledger.eval_loss_first is None:
            trainer.validate_first()
        watch.leave_if_stopped(crew.any(context.stopping()))
        if ledger.finished and resume is not None:
            trainer.take_weights(resume)
        else:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        watch.leave_if_stopped()
        if rows.validation and not ledger.validated(trainer.state.global_step):
            trainer.evaluate()
        watch.leave_if_stopped()
        if watch.best.is_dir():
            trainer.take_weights(watch.best)
            context.report.log(f"the best weights are kept: those of step {ledger.best_step}")
    finally:
        watch.close()
    return Trained(trainer, ledger, watch.runs)


def _first_batch(
    params: TrainingParams, precision: ChosenPrecision, rows: Rows, size: ModelSize, ledger: Ledger, crew: Crew
) -> BatchSize:
    """The batch of the earlier attempt, so that the data goes on where it stopped; else a chosen one."""
    if ledger.batch_size:
        return ledger.batch
    chosen = choose_batch_size(
        params.batch_size,
        params.gradient_accumulation,
        math.ceil(rows.count / crew.size),
        rows.longest,
        params.epochs if params.max_steps is None else math.inf,
        precision.dtype,
        size,
        machine(crew.local_size),
    )
    smallest = crew.least(chosen.batch_size)
    if smallest == chosen.batch_size:
        return chosen
    return BatchSize(smallest, chosen.accumulation, f"{smallest}: another rank has room for no more")


def total_steps(params: TrainingParams, rows: int, batch: BatchSize, ranks: int = 1) -> int:
    """Optimizer steps of the whole run, as transformers counts them. Every rank takes its own batches of an epoch."""
    if params.max_steps is not None:
        return params.max_steps
    batches = math.ceil(math.ceil(rows / batch.batch_size) / ranks)
    per_epoch = math.ceil(batches / batch.accumulation)
    return math.ceil(params.epochs * per_epoch)


def _arguments(
    context: RecipeContext, params: TrainingParams, precision: ChosenPrecision, rows: Rows, batch: BatchSize, crew: Crew
) -> dict[str, Any]:
    """What every recipe's TrainingArguments have in common."""
    cuda = torch.cuda.is_available()
    total = total_steps(params, rows.count, batch, crew.size)
    return {
        "output_dir": str(context.workdir / CHECKPOINTS),
        "per_device_train_batch_size": batch.batch_size,
        "per_device_eval_batch_size": batch.batch_size,
        "gradient_accumulation_steps": batch.accumulation,
        "gradient_checkpointing": batch.checkpointing,
        "num_train_epochs": params.epochs,
        "max_steps": params.max_steps or -1,
        "learning_rate": params.learning_rate,
        "warmup_steps": math.ceil(params.warmup_ratio * total),
        "lr_scheduler_type": "constant_with_warmup" if params.lr_schedule == "constant" else params.lr_schedule,
        "weight_decay": params.weight_decay,
        "max_grad_norm": params.max_grad_norm,
        "bf16": precision.bf16,
        "use_cpu": not cuda,
        "eval_strategy": "steps" if rows.validation else "no",
        "eval_steps": params.eval_steps or math.ceil(total / TIMES),
        "prediction_loss_only": True,
        "save_strategy": "steps",
        "save_steps": params.save_steps or math.ceil(total / TIMES),
        # `Watch` deletes old checkpoints: the trainer would do so before their upload is through.
        "save_total_limit": None,
        "logging_steps": params.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": params.seed,
        "data_seed": params.seed,
        "remove_unused_columns": False,
        # Rows are tokens already and come from a memory map: on a processor, workers would only take its cores.
        "dataloader_num_workers": 2 if cuda else 0,
        "dataloader_prefetch_factor": 4 if cuda else None,
        "dataloader_pin_memory": cuda,
    }


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on an accelerator, or where torch asked the system for more than there is."""
    said = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)
    )


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
