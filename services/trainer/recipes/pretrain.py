"""Pretraining: a Llama-style causal language model from raw text, from scratch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from services.trainer.recipes import text_data
from services.trainer.recipes.api import MadeOutput, RecipeContext, Stopped
from services.trainer.recipes.environment import prepare_environment
from services.trainer.recipes.jsonl import bad_data
from services.trainer.recipes.splits import held_out_count
from shared.contracts.artifacts import ArtifactKind
from shared.contracts.recipes import PretrainParams

SERVED_ON_CPU = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""vLLM 0.32: CPUAttentionBackend.get_supported_head_sizes."""


def run(context: RecipeContext) -> list[MadeOutput]:
    """Check the text, train tokenizer and model, and save both. Raises RecipeError or Stopped."""
    params = PretrainParams.model_validate(context.spec.params)
    for name in ("training_data", "validation_data"):
        if name in context.inputs:
            letters = text_data.check(context.inputs[name], name)
            context.report.log(f"{name}: {letters:,} characters")
    if hint := hint_on_serving(params):
        context.report.log(hint)
    _stop_if_asked(context)
    prepare_environment()
    from services.trainer.recipes.tokenizer import given_tokenizer, train_tokenizer

    if given := context.inputs.get("tokenizer"):
        tokenizer = given_tokenizer(given, params.context_length)
    else:
        texts = text_data.texts(context.inputs["training_data"], "training_data")
        tokenizer = train_tokenizer(texts, params.vocab_size, params.context_length)
    context.report.log(f"tokenizer: {len(tokenizer):,} tokens, {'given' if given else 'trained on the corpus'}")
    _stop_if_asked(context)
    return _train(context, params, tokenizer)


def hint_on_serving(params: PretrainParams) -> str:
    """A warning where the engine could serve the model on accelerators only; empty where it can everywhere."""
    size = params.hidden_size // params.heads
    if size in SERVED_ON_CPU:
        return ""
    sizes = ", ".join(map(str, SERVED_ON_CPU))
    return (
        f"warning: vLLM cannot serve this model on a CPU: its heads are {size} wide (hidden_size / heads), "
        f"and there they may be {sizes}"
    )


def _train(context: RecipeContext, params: PretrainParams, tokenizer: Any) -> list[MadeOutput]:
    from services.trainer.recipes import llama
    from services.trainer.recipes.crew import meet
    from services.trainer.recipes.model_precision import precision_for
    from services.trainer.recipes.report_file import add_runs, keep_plain, write_report
    from services.trainer.recipes.training import Rows, train

    training, validation, tokens = _windows(context, params, tokenizer)
    crew = meet(context)
    precision = precision_for(params.precision, params.hidden_size, crew)
    mark = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    rows = Rows(len(training), params.context_length, len(validation), f"tokenizer {mark}")
    context.report.log(
        f"{tokens:,} tokens: {len(training):,} windows of {params.context_length} to train on, "
        f"{len(validation):,} to validate with"
    )
    config = llama.config(params, tokenizer)
    make_trainer = llama.trainer_maker(config, params, training, validation)
    made = train(context, params, precision, rows, llama.size(config), make_trainer, crew)
    if not crew.leads:
        return []
    output = context.workdir / "model"
    llama.save(made, output, tokenizer)
    keep_plain(output)
    add_runs(output, made.runs)
    data = {"tokens": tokens, "windows": len(training), "validation_windows": len(validation)}
    write_report(output, "pretrain", params.model_dump(mode="json"), precision, made.ledger, data)
    metrics = made.ledger.metrics()
    return [
        MadeOutput(
            name=context.spec.output,
            kind=ArtifactKind.model,
            folder=output,
            metadata={
                "task": "text-generation",
                "architecture": "LlamaForCausalLM",
                "context_length": params.context_length,
                "parameters": llama.size(config).parameters,
                "vocab_size": len(tokenizer),
                "params": params.model_dump(mode="json"),
                "metrics": metrics,
            },
            parents=[pin.ref for pin in context.spec.inputs.values()],
            metrics=metrics,
        )
    ]


def _windows(context: RecipeContext, params: PretrainParams, tokenizer: Any) -> tuple[Any, Any, int]:
    """Windows to train on and to validate with, and the tokens of the training data."""
    from services.trainer.recipes.corpus import Windows, write_tokens

    def tokenized(name: str) -> tuple[Path, int]:
        path = context.workdir / f"{name}.tokens"
        return path, write_tokens(text_data.pieces(context.inputs[name], name), tokenizer, path)

    length = params.context_length
    path, tokens = tokenized("training_data")
    count = tokens // length
    if not count:
        raise bad_data(
            f"The input training_data has only {tokens} tokens, fewer than one window of {length}",
            "training_data",
            "Give more text, or a smaller context_length.",
        )
    if "validation_data" in context.inputs:
        other, other_tokens = tokenized("validation_data")
        # A text that is shorter than a window is a window of its own.
        width = min(length, other_tokens)
        return Windows(path, length, 0, count), Windows(other, width, 0, other_tokens // width), tokens
    kept = count - held_out_count(count, params.validation_fraction)
    return Windows(path, length, 0, kept), Windows(path, length, kept, count), tokens


def _stop_if_asked(context: RecipeContext) -> None:
    if context.stopping():
        raise Stopped
