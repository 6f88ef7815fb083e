"""Changing the number format of a model's safetensors, a file at a time, without building the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from services.trainer.recipes.model_folder import read_config

FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})


def cast_folder(folder: Path, dtype: str, on_file: Callable[[int, int], None]) -> None:
    """Every floating tensor becomes `dtype`, and the config says so. `on_file` is told `(done, all)`."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    target = getattr(torch, dtype)
    files = sorted(folder.rglob("*.safetensors"))
    for count, path in enumerate(files, start=1):
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {"format": "pt"}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        cast = {
            name: t.to(target) if str(t.dtype).removeprefix("torch.") in FLOATS else t for name, t in tensors.items()
        }
        fresh = path.with_name(path.name + ".new")
        save_file(cast, fresh, metadata=metadata)
        fresh.replace(path)  # never in place: the file may be a hard link to the user's own
        on_file(count, len(files))
    _say_so(folder, dtype)


def _say_so(folder: Path, dtype: str) -> None:
    config = read_config(folder)
    config.pop("torch_dtype", None)
    config["dtype"] = dtype
    path = folder / "config.json"
    path.unlink()  # a hard link, as above
    path.write_text(json.dumps(config, indent=2) + "\n")
