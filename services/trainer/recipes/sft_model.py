"""The model of a fine-tuning: made with its adapter, trained by TRL, saved so that vLLM takes it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import set_seed
from trl import SFTConfig

from services.trainer.recipes.answer_trainer import AnswerTrainer, isolates
from services.trainer.recipes.api import MadeOutput, RecipeContext, RecipeError
from services.trainer.recipes.base_model import BaseModel, load_config, load_model, parents
from services.trainer.recipes.ledger import Ledger
from services.trainer.recipes.precision import ChosenPrecision
from services.trainer.recipes.report_file import add_runs, keep_plain, write_report
from services.trainer.recipes.rows import Collator
from services.trainer.recipes.sft_rows import SftRows
from services.trainer.recipes.training import MakeTrainer, Trained
from shared.contracts.artifacts import ArtifactKind
from shared.contracts.jobs import FailureReason
from shared.contracts.recipes import SftParams


class PackingLeaks(Exception):
    """This architecture lets packed samples see each other."""


def trainer_maker(
    context: RecipeContext,
    params: SftParams,
    base: BaseModel,
    precision: ChosenPrecision,
    tokenizer: Any,
    rows: SftRows,
) -> MakeTrainer:
    """Loads the base model anew for every trainer, and puts an adapter on it or trains it whole.

    The trainer's making raises PackingLeaks.
    """

    def make(arguments: dict[str, Any], ledger: Ledger) -> AnswerTrainer:
        set_seed(params.seed)
        # An adapter is trained in fp32 over a base in the format computed in; a whole model keeps fp32 masters.
        model = load_model(base, precision.dtype if params.method == "lora" else "float32")
        if params.packing and not isolates(model):
            raise PackingLeaks
        if params.method == "lora":
            model = _with_adapter(model, params, base)
        settings = SFTConfig(
            **arguments,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            train_sampling_strategy="random" if params.packing else "group_by_length",
        )
        trainer = AnswerTrainer(
            model=model,
            args=settings,
            train_dataset=rows.training,
            eval_dataset=rows.validation if len(rows.validation) else None,
            processing_class=tokenizer,
            data_collator=Collator(_pad_token(tokenizer)),
        )
        trainer.ledger = ledger
        return trainer

    return make


def outputs(
    context: RecipeContext,
    params: SftParams,
    base: BaseModel,
    precision: ChosenPrecision,
    tokenizer: Any,
    rows: SftRows,
    made: Trained,
) -> list[MadeOutput]:
    """The adapter or the model, and the merged model where it was asked for."""
    folder = context.workdir / "output"
    if params.method == "full":
        _save_model(made.trainer.model, _stored_dtype(base), folder, tokenizer)
    else:
        made.trainer.save_model(str(folder))
    keep_plain(folder)
    add_runs(folder, made.runs)
    write_report(folder, "sft", params.model_dump(mode="json"), precision, made.ledger, asdict(rows.counts))
    kind = ArtifactKind.model if params.method == "full" else ArtifactKind.adapter
    found = [_output(context, params, base, rows, made, context.spec.output, kind, folder)]
    if params.merge and params.method == "lora":
        merged = context.workdir / "merged"
        _save_merged(base, folder, merged, tokenizer)
        name = f"{context.spec.output}-merged"
        found.append(_output(context, params, base, rows, made, name, ArtifactKind.model, merged))
    return found


def _output(
    context: RecipeContext,
    params: SftParams,
    base: BaseModel,
    rows: SftRows,
    made: Trained,
    name: str,
    kind: ArtifactKind,
    folder: Path,
) -> MadeOutput:
    metrics = made.ledger.metrics()
    metadata = {
        "task": "text-generation",
        "base_model": base.name,
        "method": params.method,
        "context_length": rows.max_length,
        "params": params.model_dump(mode="json"),
        "metrics": metrics,
    }
    if kind is ArtifactKind.adapter:
        metadata["lora_r"] = params.lora_r
    return MadeOutput(name, kind, folder, metadata, parents(context.spec.inputs), metrics)


def _lora(params: SftParams) -> LoraConfig:
    return LoraConfig(
        r=params.lora_r,
        lora_alpha=params.lora_alpha,
        lora_dropout=params.lora_dropout,
        target_modules=params.lora_target_modules,
        task_type="CAUSAL_LM",
    )


def _with_adapter(model: Any, params: SftParams, base: BaseModel) -> Any:
    """The model with a fresh adapter, which calls its base by name. Raises RecipeError where no layer fits."""
    try:
        adapted = get_peft_model(model, _lora(params))
    except ValueError as error:
        raise RecipeError(
            FailureReason.bad_params,
            f"lora_target_modules {params.lora_target_modules!r} does not fit the base model: {error}",
            "'all-linear' fits every model.",
            "lora_target_modules",
        ) from error
    adapted.peft_config["default"].base_model_name_or_path = base.name
    return adapted


def _pad_token(tokenizer: Any) -> int:
    """Any token will do: padding is neither learnt nor seen."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)


def _stored_dtype(base: BaseModel) -> torch.dtype:
    """The format that the base model's weights are kept in; the result keeps it."""
    dtype = load_config(base).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _save_model(model: Any, dtype: torch.dtype, folder: Path, tokenizer: Any) -> None:
    model.config.use_cache = True  # the trainer turned it off
    model.to(dtype).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def _save_merged(base: BaseModel, adapter: Path, folder: Path, tokenizer: Any) -> None:
    """Merged in fp32, so that a small change is not rounded away before it is added."""
    model = PeftModel.from_pretrained(load_model(base, "float32"), str(adapter)).merge_and_unload()
    _save_model(model, _stored_dtype(base), folder, tokenizer)
