"""A model as a folder of files: which of them belong to it, which are refused, and what they say about it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.trainer.recipes.api import RecipeError
from services.trainer.recipes.safetensors_header import BrokenSafetensors, Weights, read_weights
from shared.contracts.jobs import FailureReason

KEPT = frozenset({".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken", ".md", ".yaml", ".yml"})
KEPT_NAMES = ("LICENSE", "LICENCE", "NOTICE", "COPYING")
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
TOKENIZERS = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "tekken.json", "*.tiktoken")
"""One of these is in every model that comes with its tokenizer; configuration alone is none."""
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length")
LICENCE_LINE = re.compile(r"^licen[sc]e:\s*[\"']?([^\s\"'#]+)", re.MULTILINE | re.IGNORECASE)

CONVERT_HINT = (
    "Convert it where you trust the file: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) "
    "writes safetensors; then import NEW_FOLDER."
)


@dataclass(frozen=True)
class Selection:
    """The files of a model by their path in it, with where each really lies; and what was left out."""

    files: dict[str, Path]
    left_out: list[str]


def select_files(folder: Path, boundary: Path | None = None) -> Selection:
    """What belongs to the model in `folder`. Links may lead anywhere within `boundary`, by default `folder`.

    Raises RecipeError: a link that leaves, pickled weights only, no weights, no config.
    """
    root = (boundary or folder).resolve()
    files, left_out = {}, []
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        real = path.resolve()
        if not real.is_relative_to(root):
            raise RecipeError(
                FailureReason.unsafe_artifact,
                f"{name!r} in {folder} is a link that leaves the folder, to {real}",
                "Copy the folder with its links resolved (cp -rL) and import the copy.",
                param="source",
            )
        if _belongs(path):
            files[name] = real
        else:
            left_out.append(name)
    _check_layout(folder, files, left_out)
    return Selection(files, left_out)


def copy_files(selection: Selection, target: Path, on_file: Callable[[int], None]) -> None:
    """Hard links where they can be, else copies. `on_file` is told how many are there."""
    for count, (name, source) in enumerate(selection.files.items(), start=1):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, path)
        except OSError:  # another disk, or another user's file
            shutil.copyfile(source, path)
        on_file(count)


def weigh(folder: Path) -> Weights:
    """The parameters in the folder's safetensors. Raises RecipeError for a broken file or a missing shard."""
    try:
        weights = read_weights(sorted(folder.rglob("*.safetensors")))
    except BrokenSafetensors as error:
        raise RecipeError(FailureReason.bad_data, str(error), "Download the model again.", param="source") from error
    for index in folder.glob("*.safetensors.index.json"):
        for shard in sorted(set(_json(index).get("weight_map", {}).values())):
            if not (folder / shard).is_file():
                raise RecipeError(
                    FailureReason.input_missing,
                    f"{index.name} names {shard}, which is not there",
                    "Download the model again.",
                    param="source",
                )
    return weights


def describe(folder: Path, weights: Weights) -> dict[str, Any]:
    """The facts for the registry: what is not known is left out."""
    config = read_config(folder)
    text = config.get("text_config") or config
    context = next((config.get(key) or text.get(key) for key in CONTEXT_KEYS if config.get(key) or text.get(key)), None)
    facts = {
        "architecture": next(iter(config.get("architectures") or []), config.get("model_type")),
        "parameters": weights.parameters,
        "context_length": context,
        "dtype": weights.dtype,
        "licence": _licence(folder),
        "format": "safetensors",
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def has_tokenizer(folder: Path) -> bool:
    """Whether it can turn text into tokens."""
    return any(any(folder.glob(pattern)) for pattern in TOKENIZERS)


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json. Raises RecipeError."""
    return _json(folder / "config.json")


def _walk(folder: Path) -> Iterator[Path]:
    """All files but hidden ones, sorted. Linked folders are gone into, so that what they lead to is checked."""
    for parent, folders, files in os.walk(folder, followlinks=False):
        here = Path(parent)
        for name in sorted(folders):
            if (here / name).is_symlink():
                yield here / name  # as a file: refused when it leaves, left out when it does not
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (here / name for name in sorted(files) if not name.startswith("."))


def _belongs(path: Path) -> bool:
    return path.is_file() and (path.suffix.lower() in KEPT or path.name.upper().startswith(KEPT_NAMES))


def _check_layout(folder: Path, files: dict[str, Path], left_out: list[str]) -> None:
    if not any(name.endswith(".safetensors") for name in files):
        pickles = [name for name in left_out if Path(name).suffix.lower() in PICKLES]
        if pickles:
            message = f"{folder} has its weights only as a pickle ({pickles[0]}), which may run code when it is read"
            raise RecipeError(FailureReason.unsafe_artifact, message, CONVERT_HINT, param="source")
        raise RecipeError(
            FailureReason.input_missing,
            f"{folder} has no .safetensors file",
            "Name the folder that save_pretrained wrote, or a .gguf file.",
            param="source",
        )
    if "config.json" not in files:
        adapter = "adapter_config.json" in files
        raise RecipeError(
            FailureReason.bad_data if adapter else FailureReason.input_missing,
            f"{folder} is an adapter, not a model" if adapter else f"{folder} has no config.json",
            "Import its base model, and fine-tune that." if adapter else "Name the folder that save_pretrained wrote.",
            param="source",
        )


def _licence(folder: Path) -> str | None:
    """From the model card's front matter."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    front = re.match(r"\s*---\n(.*?)\n---", card.read_text(errors="replace"), re.DOTALL)
    found = LICENCE_LINE.search(front.group(1)) if front else None
    return found.group(1) if found else None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RecipeError(FailureReason.bad_data, f"{path.name} cannot be read: {error}", param="source") from error
    if not isinstance(content, dict):
        raise RecipeError(FailureReason.bad_data, f"{path.name} is no JSON object", param="source")
    return content
