"""What a safetensors file says about its tensors, read without loading any of them.

Format: 8 bytes little-endian length, a JSON object of that length, the tensors' bytes
(https://huggingface.co/docs/safetensors/index#format).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

MAX_HEADER_BYTES = 100_000_000
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class BrokenSafetensors(Exception):
    """The file is no safetensors file, or part of it is missing; one sentence."""


@dataclass(frozen=True)
class Weights:
    """How many parameters, by dtype (torch's name, or the format's own for what is no float)."""

    parameters_by_dtype: Counter[str] = field(default_factory=Counter)

    @property
    def parameters(self) -> int:
        return sum(self.parameters_by_dtype.values())

    @property
    def dtype(self) -> str:
        """That of most parameters."""
        return self.parameters_by_dtype.most_common(1)[0][0] if self.parameters_by_dtype else "unknown"


def read_weights(files: Iterable[Path]) -> Weights:
    """The tensors of all files together. Raises BrokenSafetensors."""
    counts: Counter[str] = Counter()
    for file in files:
        for name, tensor in read_header(file).items():
            if name != "__metadata__":
                counts[DTYPES.get(tensor["dtype"], tensor["dtype"])] += math.prod(tensor["shape"])
    return Weights(counts)


def read_header(path: Path) -> dict[str, Any]:
    """The header, checked against the file's size. Raises BrokenSafetensors."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size_bytes < 8 or length > min(size_bytes - 8, MAX_HEADER_BYTES):
            raise BrokenSafetensors(f"{path.name} is no safetensors file, or it was cut off")
        raw = file.read(length)
    try:
        header: dict[str, Any] = orjson.loads(raw)
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    except (orjson.JSONDecodeError, AttributeError, KeyError, IndexError, TypeError) as error:
        raise BrokenSafetensors(f"{path.name} has no readable safetensors header") from error
    expected = 8 + length + max(ends, default=0)
    if size_bytes != expected:
        raise BrokenSafetensors(f"{path.name} has {size_bytes} bytes, its header says {expected}: it was cut off")
    return header
