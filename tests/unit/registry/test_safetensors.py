"""Broken safetensors are told from sound ones by the header alone."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.registry.safetensors import NotSafetensors, check_safetensors


def check(raw: bytes) -> None:
    check_safetensors(len(raw), lambda at, length: raw[at : at + length])


def packed(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(start: int, stop: int, dtype: str = "F32", shape: list[int] | None = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "raw",
    [
        packed({}),
        packed({"__metadata__": {"format": "pt"}, "w": tensor(0, 16)}, b"x" * 16),
        packed({"b": tensor(8, 16), "a": tensor(0, 8)}, b"x" * 16),
        packed({"scalar": tensor(0, 4, shape=[])}, b"x" * 4),
        packed({"none": tensor(0, 0, shape=[0, 5]), "w": tensor(0, 4)}, b"x" * 4),
        packed({"half": tensor(0, 6, "BF16", [3]), "nibbles": tensor(6, 8, "F4", [4])}, b"x" * 8),
    ],
)
def test_sound_files_pass(raw: bytes) -> None:
    check(raw)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "shorter"),
        (b"1234567", "shorter"),
        (struct.pack("<Q", 2**63) + b"{}", "does not fit"),
        (packed(b"{}")[:-1], "does not fit"),
        (packed(b"\xff\xfe"), "not JSON"),
        (packed(b"[" * 100_000), "not JSON"),
        (packed([]), "not a JSON object"),
        (packed(b'{"a": 1, "a": 2}'), "not JSON"),
        (packed({"__metadata__": {"a": 1}}), "__metadata__"),
        (packed({"w": 1}), "lacks"),
        (packed({"w": {"dtype": "F32", "shape": [1]}}), "lacks"),
        (packed({"w": tensor(0, 4, "PICKLE")}, b"x" * 4), "unknown dtype"),
        (packed({"w": tensor(0, 4, shape=[-1])}, b"x" * 4), "broken shape"),
        (packed({"w": tensor(0, 4, shape=[2])}, b"x" * 4), "does not fit its"),
        (packed({"w": tensor(0, 8)}, b"x" * 4), "end at"),
        (packed({"w": tensor(0, 4)}, b"x" * 8), "end at"),
        (packed({"a": tensor(0, 4), "b": tensor(8, 12)}, b"x" * 12), "was expected"),
        (packed({"a": tensor(0, 8), "b": tensor(4, 12)}, b"x" * 12), "was expected"),
        (packed({"w": tensor(-4, 0)}), "does not fit its"),
    ],
)
def test_broken_files_are_told(raw: bytes, reason: str) -> None:
    with pytest.raises(NotSafetensors, match=reason):
        check(raw)


@given(st.binary(max_size=64), st.integers(0, 80))
def test_noise_never_does_worse_than_being_refused(noise: bytes, length: int) -> None:
    for raw in (noise, struct.pack("<Q", length) + noise):
        try:
            check(raw)
        except NotSafetensors:
            continue


def test_only_the_header_is_read() -> None:
    raw = packed({"w": tensor(0, 400)}, b"x" * 400)
    reads: list[int] = []

    def read_at(at: int, length: int) -> bytes:
        reads.append(length)
        return raw[at : at + length]

    check_safetensors(len(raw), read_at)
    assert sum(reads) == len(raw) - 400
