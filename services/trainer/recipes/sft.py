"""Supervised fine-tuning on chats or prompt/completion pairs: LoRA or full, loss on the answers only."""

from __future__ import annotations

from services.trainer.recipes import chat_data
from services.trainer.recipes.api import MadeOutput, RecipeContext, Stopped
from services.trainer.recipes.base_model import BaseModel, fetch, find_base_model
from services.trainer.recipes.environment import prepare_environment
from shared.contracts.recipes import SftParams


def run(context: RecipeContext) -> list[MadeOutput]:
    """Check the data, load the base model, train, and save. Raises RecipeError or Stopped."""
    params = SftParams.model_validate(context.spec.params)
    base = find_base_model(context, params)
    counts = {}
    for name in ("training_data", "validation_data"):
        if name in context.inputs:
            counts[name] = chat_data.check(context.inputs[name], name)
            context.report.log(f"{name}: {counts[name]:,} samples")
    if context.stopping():
        raise Stopped
    prepare_environment(hub=base.hub)
    base = fetch(base, context)
    from services.trainer.recipes.sft_model import PackingLeaks

    try:
        return _train(context, params, base, counts)
    except PackingLeaks:
        context.report.log(f"no packing: {base.name} would let packed samples see each other")
        return _train(context, params.model_copy(update={"packing": False}), base, counts)


def _train(context: RecipeContext, params: SftParams, base: BaseModel, counts: dict[str, int]) -> list[MadeOutput]:
    from services.trainer.recipes import sft_model, sft_rows
    from services.trainer.recipes.base_model import load_config, model_size
    from services.trainer.recipes.crew import meet
    from services.trainer.recipes.model_precision import precision_for
    from services.trainer.recipes.training import Rows, train

    config = load_config(base)
    tokenizer, rows = sft_rows.prepare(context, params, base, config, counts)
    crew = meet(context)
    precision = precision_for(params.precision, config.get_text_config().hidden_size, crew)
    made = train(
        context,
        params,
        precision,
        Rows(len(rows.training), rows.longest, len(rows.validation)),
        model_size(config, params.method),
        sft_model.trainer_maker(context, params, base, precision, tokenizer, rows),
        crew,
    )
    if not crew.leads:
        return []
    return sft_model.outputs(context, params, base, precision, tokenizer, rows, made)
