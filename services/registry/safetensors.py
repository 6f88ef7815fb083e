"""The safetensors format, checked by its header alone: https://github.com/huggingface/safetensors#format

8 bytes with the header's length (little-endian), the header in JSON, then the tensors' bytes without holes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from typing import Any

MAX_HEADER_BYTES = 100_000_000
BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}

ReadAt = Callable[[int, int], bytes]
"""(offset, length) → that part of the file."""


class NotSafetensors(Exception):
    """The file is broken; the message says where."""


def check_safetensors(size_bytes: int, read_at: ReadAt) -> None:
    """Raises NotSafetensors unless the header is sound and its tensors fill the rest of the file exactly."""
    if size_bytes < 8:
        raise NotSafetensors("it is shorter than its header's length")
    length = int.from_bytes(read_at(0, 8), "little")
    if length > min(MAX_HEADER_BYTES, size_bytes - 8):
        raise NotSafetensors(f"its header of {length} bytes does not fit into it")
    tensors = _header(read_at(8, length))
    end = 0
    for start, stop, name in sorted(_span(name, tensor) for name, tensor in tensors.items()):
        if start != end:
            raise NotSafetensors(f"tensor {name!r} begins at {start}, where {end} was expected")
        end = stop
    if end != size_bytes - 8 - length:
        raise NotSafetensors(f"its tensors end at {end} of {size_bytes - 8 - length} bytes")


def _header(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise NotSafetensors(f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise NotSafetensors("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise NotSafetensors("its __metadata__ does not map text to text")
    return header


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _span(name: str, tensor: object) -> tuple[int, int, str]:
    """(start, end, name) of a tensor whose type and shape fit that span."""
    match tensor:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(stop)]}:
            pass
        case _:
            raise NotSafetensors(f"tensor {name!r} lacks a dtype, a shape or its data_offsets")
    if dtype not in BITS or not all(type(size) is int and size >= 0 for size in shape):
        raise NotSafetensors(f"tensor {name!r} has the unknown dtype {dtype!r} or a broken shape")
    if not 0 <= start <= stop or (stop - start) * 8 != prod(shape) * BITS[dtype]:
        raise NotSafetensors(f"tensor {name!r} has a shape that does not fit its {stop - start} bytes")
    return start, stop, name
