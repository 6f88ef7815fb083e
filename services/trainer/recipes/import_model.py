"""Brings a model in from outside as safetensors: a folder, a GGUF file, or a model of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from services.trainer.recipes.api import MadeOutput, RecipeContext, RecipeError, Stopped
from services.trainer.recipes.model_folder import copy_files, describe, has_tokenizer, read_config, select_files, weigh
from shared.contracts.artifacts import ArtifactKind
from shared.contracts.jobs import FailureReason
from shared.contracts.recipes import ImportParams

NO_TOKENIZER = (
    "warning: the model has no tokenizer; it can neither be served nor fine-tuned until it is imported with one "
    "(AutoTokenizer.from_pretrained(BASE).save_pretrained(FOLDER) writes it)"
)
STEPS = 4
"""Found, brought, checked, described."""


def run(context: RecipeContext) -> list[MadeOutput]:
    """One output: the model, whatever it came from."""
    params = ImportParams.model_validate(context.spec.params)
    target = context.workdir / "model"
    target.mkdir()
    context.report.progress(0, STEPS)
    said = _bring(params, target, context)
    context.report.progress(2, STEPS)
    weights = weigh(target)
    if params.dtype not in ("auto", weights.dtype):
        _cast(target, params.dtype, context)
        weights = weigh(target)
    context.report.progress(3, STEPS)
    metadata = {"source": params.source or _uploaded(context).name, **said, **describe(target, weights)}
    context.report.log(f"{weights.parameters:,} parameters in {weights.dtype}")
    if not has_tokenizer(target):
        context.report.log(NO_TOKENIZER)
    context.report.progress(STEPS, STEPS)
    return [MadeOutput(context.spec.output, ArtifactKind.model, target, metadata=metadata)]


def _bring(params: ImportParams, target: Path, context: RecipeContext) -> dict[str, Any]:
    """The model's files into `target`; returns what its source says of it."""
    if params.source is None:
        return _from_gguf(_uploaded(context), params, target, context)
    if not is_path(params.source):
        return _from_hub(params.source, params.revision, target, context)
    path = _local_path(params.source, params.revision, context)
    if path.is_dir():
        _take(path, None, target, context)
        return {}
    if path.suffix.lower() == ".gguf":
        return _from_gguf(path, params, target, context)
    raise RecipeError(
        FailureReason.bad_params,
        f"{path} is neither a folder nor a .gguf file",
        "Name the folder that save_pretrained wrote, a .gguf file, or a hub id.",
        param="source",
    )


def is_path(source: str) -> bool:
    """Paths begin like paths or end in .gguf; everything else is a hub id."""
    return source.startswith(("/", "~", "./", "../")) or source.lower().endswith(".gguf")


def _uploaded(context: RecipeContext) -> Path:
    """The one file of the input `file`."""
    return next(path for path in context.inputs["file"].iterdir())


def _from_gguf(path: Path, params: ImportParams, target: Path, context: RecipeContext) -> dict[str, Any]:
    from services.trainer.recipes.gguf_file import convert_gguf

    context.report.progress(1, STEPS)
    return convert_gguf(path, target, params.dtype, context)


def _local_path(source: str, revision: str | None, context: RecipeContext) -> Path:
    if not context.allow_local_models:
        message = f"this system takes no models from the trainer's own disk, such as {source}"
        raise RecipeError(FailureReason.bad_params, message, "LLMOS_ALLOW_LOCAL_MODELS=true allows it.", param="source")
    if revision is not None:
        message = "a revision only goes with a hub id, not with a path"
        raise RecipeError(FailureReason.bad_params, message, param="revision")
    path = Path(source).expanduser()
    if not path.is_absolute():
        message = f"{source} is a relative path, and the trainer runs in a folder of its own"
        raise RecipeError(FailureReason.bad_params, message, "Give the whole path.", param="source")
    if not path.exists():
        message = f"there is no {path} on the trainer's machine"
        raise RecipeError(FailureReason.input_missing, message, "Check the path; it is read there.", param="source")
    return path


def _from_hub(source: str, revision: str | None, target: Path, context: RecipeContext) -> dict[str, Any]:
    from services.trainer.recipes.hub import download

    if not context.allow_hub:
        message = f"this system takes no models from the hub, such as {source}"
        raise RecipeError(FailureReason.bad_params, message, "LLMOS_ALLOW_HUB=true allows it.", param="source")
    folder, boundary = download(source, revision, context.report.log)
    _take(folder, boundary, target, context)
    return {"revision": folder.name}


def _take(folder: Path, boundary: Path | None, target: Path, context: RecipeContext) -> None:
    selection = select_files(folder, boundary)
    context.report.progress(1, STEPS)
    for name in selection.left_out:
        context.report.log(f"left out: {name}")

    def on_file(_: int) -> None:
        if context.stopping():
            raise Stopped

    copy_files(selection, target, on_file)


def _cast(folder: Path, dtype: str, context: RecipeContext) -> None:
    from services.trainer.recipes.casting import cast_folder

    if "quantization_config" in read_config(folder):
        message = f"the model is quantized and cannot be changed to {dtype}"
        raise RecipeError(FailureReason.bad_params, message, "Leave dtype at 'auto'.", param="dtype")

    def on_file(done: int, total: int) -> None:
        context.report.log(f"changed to {dtype}: {done} of {total} files")
        if context.stopping():
            raise Stopped

    cast_folder(folder, dtype, on_file)
