"""The model that a fine-tuning starts from: an artifact, a folder on this machine, or a model of the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.trainer.recipes.api import RecipeContext, RecipeError
from services.trainer.recipes.batch_size import ModelSize
from services.trainer.recipes.chat_rendering import CHATML
from services.trainer.recipes.hub import download
from shared.contracts.jobs import FailureReason
from shared.contracts.recipes import SftParams


@dataclass(frozen=True)
class BaseModel:
    """`source` is what transformers loads; `name` is how the adapter and the lineage call it (never a path)."""

    source: str
    name: str
    hub: bool = False


def find_base_model(context: RecipeContext, params: SftParams) -> BaseModel:
    """Where the base model is, without loading it. Raises RecipeError where none is given, found or allowed."""
    folder = context.inputs.get("model")
    if folder is not None:
        if params.base_model:
            raise _refuse(FailureReason.bad_params, "Both the input model and base_model are given: give one of them")
        return BaseModel(_checked(folder), context.spec.inputs["model"].ref)
    if not params.base_model:
        raise _refuse(FailureReason.input_missing, "No base model is given", "Give the input model, or base_model.")
    return _named(params.base_model, context)


def _named(name: str, context: RecipeContext) -> BaseModel:
    path = Path(name).expanduser()
    if path.is_dir() or name.startswith(("/", "./", "../", "~")):
        if not context.allow_local_models:
            raise _refuse(
                FailureReason.bad_params,
                f"base_model {name!r} is a folder of this machine, and those are not allowed here",
                "Import it as an artifact first, or set LLMOS_ALLOW_LOCAL_MODELS=true.",
            )
        if not path.is_dir():
            raise _refuse(FailureReason.input_missing, f"base_model {name!r} is no folder on this machine")
        return BaseModel(_checked(path), path.resolve().name)
    if not context.allow_hub:
        raise _refuse(
            FailureReason.bad_params,
            f"base_model {name!r} would come from the Hugging Face hub, which is not allowed here",
            "Give the input model, or set LLMOS_ALLOW_HUB=true.",
        )
    return BaseModel(name, name, hub=True)


def fetch(base: BaseModel, context: RecipeContext) -> BaseModel:
    """A model of the hub as a folder of this machine's hub cache; any other as it is. Raises RecipeError."""
    if not base.hub:
        return base
    try:
        folder, _ = download(base.source, None, context.report.log)
    except RecipeError as error:
        raise _refuse(error.reason, error.message, error.hint) from error
    return BaseModel(_checked(folder), base.name)


def _checked(folder: Path) -> str:
    if not (folder / "config.json").is_file():
        raise _refuse(FailureReason.input_missing, "The base model has no config.json: it is no transformers model")
    if not any(folder.glob("*.safetensors")):
        raise _refuse(
            FailureReason.unsafe_artifact,
            "The base model has no safetensors weights; other formats can run code and are refused",
            "Import it first: that writes safetensors.",
        )
    return str(folder)


def load_tokenizer(base: BaseModel, chats: bool, context: RecipeContext) -> Any:
    """Its tokenizer, with a plain chat template where it has none and chats are to be learnt. Raises RecipeError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base.source, trust_remote_code=False)
    except Exception as error:  # broken files, unknown classes, whatever a library finds: all mean this model
        raise _unloadable("tokenizer", base, error) from error
    if chats and not tokenizer.chat_template:
        tokenizer.chat_template = CHATML
        context.report.log(f"{base.name} has no chat template: a plain one (ChatML) is set and saved with the result")
    return tokenizer


def load_config(base: BaseModel) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base.source, trust_remote_code=False)
    except Exception as error:
        raise _unloadable("config", base, error) from error


def load_model(base: BaseModel, dtype: str) -> Any:
    """Its weights in `dtype` (torch's name). Raises RecipeError; lack of memory goes through as it is."""
    from transformers import AutoModelForCausalLM

    from services.trainer.recipes.training import is_out_of_memory

    try:
        return AutoModelForCausalLM.from_pretrained(
            base.source, dtype=dtype, trust_remote_code=False, use_safetensors=True
        )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _unloadable("weights", base, error) from error


def model_size(config: Any, method: str) -> ModelSize:
    """What training it will take, without loading it."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(config).num_parameters()
    text = config.get_text_config()
    return ModelSize(
        parameters=parameters,
        # Of an adapter on all linear layers a few percent are trained, depending on its rank.
        trainable=parameters if method == "full" else parameters // 20,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        vocabulary=text.vocab_size,
    )


def context_length(config: Any) -> int | None:
    """The most tokens that the model was made for."""
    value: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return value


def parents(inputs: Mapping[str, Any]) -> list[str]:
    """The refs of what a job was given."""
    return [pin.ref for pin in inputs.values()]


def _unloadable(what: str, base: BaseModel, error: Exception) -> RecipeError:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(base.source, base.name)
    message = f"transformers cannot load the {what} of base model {base.name}: {said}"
    return _refuse(FailureReason.input_missing, message)


def _refuse(reason: FailureReason, message: str, hint: str = "") -> RecipeError:
    return RecipeError(reason, message, hint, "base_model")
