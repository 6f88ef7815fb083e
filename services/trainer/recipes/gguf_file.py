"""A GGUF file becomes a model folder: weights as dense safetensors, and the tokenizer that lies in the file."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services.trainer.recipes.api import RecipeContext, RecipeError, Stopped
from services.trainer.recipes.gguf_header import BrokenGguf, Scalar, read_gguf_metadata
from shared.contracts.jobs import FailureReason

FULL_PRECISION = {0: "float32", 1: "float16", 32: "bfloat16"}
"""`general.file_type` of files that are not quantized."""
TELL_EVERY_S = 5.0


def convert_gguf(path: Path, target: Path, wanted: str, context: RecipeContext) -> dict[str, Any]:
    """Write the model to `target`; returns what the file says of itself. Raises RecipeError."""
    say = context.report.log
    header = _header(path)
    dtype, why = choose_dtype(wanted, header.get("general.file_type"))
    say(f"writing the weights as {dtype}: {why}")
    with _parsed_once(), _telling(say, f"reading {path.name}"):
        model, tokenizer = _load(path, dtype)
    if context.stopping():
        raise Stopped
    say(f"read {model.num_parameters():,} parameters")
    _make_plain(model)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    if not getattr(tokenizer, "chat_template", None):
        say("the file has no chat template: the model completes text, but cannot be asked in chats")
    facts = {"licence": header.get("general.license"), "title": header.get("general.name")}
    return {name: fact for name, fact in facts.items() if fact}


def choose_dtype(wanted: str, file_type: Scalar | None) -> tuple[str, str]:
    """torch's name of the format to write in, and the reason as a sentence for the log."""
    if wanted != "auto":
        return wanted, "as asked"
    if isinstance(file_type, int) and file_type in FULL_PRECISION:
        return FULL_PRECISION[file_type], "the file's own"
    return "bfloat16", "the file is quantized, so that float32 would take twice the room and say no more"


def _header(path: Path) -> dict[str, Scalar]:
    try:
        return read_gguf_metadata(path)
    except BrokenGguf as error:
        raise RecipeError(FailureReason.bad_data, str(error), "Download the file again.", param="source") from error


def _load(path: Path, dtype: str) -> tuple[Any, Any]:
    import torch
    import transformers

    where: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    # Newer versions can leave the weights packed, which cannot be saved; older ones have no such choice.
    dense = (
        {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
    )
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, dtype=getattr(torch, dtype), **dense, **where
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **where)
    except (ValueError, KeyError, NotImplementedError, OSError) as error:
        message = f"transformers cannot read {path.name}: {error}"
        hint = "Its architecture may not be supported; import the original model folder instead."
        raise RecipeError(FailureReason.bad_data, message, hint, param="source") from error
    return model, tokenizer


def _make_plain(model: Any) -> None:
    """Take away the marks of quantization, which `save_pretrained` would refuse or write down."""
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            setattr(model, name, None)
    if "is_quantized" in vars(model):
        model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._name_or_path = ""  # noqa: SLF001 - else the path on this machine is published


@contextmanager
def _parsed_once() -> Iterator[None]:
    """transformers parses the file for the config, the weights and the tokenizer, and builds the table of tensor names
    for every module: together most of the time. Both depend on their arguments alone, so once is enough."""
    import gguf

    make_reader, make_names = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = functools.cache(make_reader), functools.cache(make_names)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = make_reader, make_names


@contextmanager
def _telling(say: Callable[[str], None], doing: str) -> Iterator[None]:
    """Say every few seconds that it goes on: the library does not say how far it is."""
    ended, started_s = threading.Event(), time.monotonic()

    def tell() -> None:
        while not ended.wait(TELL_EVERY_S):
            say(f"{doing}: {time.monotonic() - started_s:.0f} s")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
