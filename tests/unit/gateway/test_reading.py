"""Whatever bytes come in: a value that can be kept, or one sentence about where it breaks."""

from __future__ import annotations

import json
from contextlib import suppress

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.errors import BadRequest
from services.gateway.reading import check_query, read_json

KEEPABLE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcé👩", max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(KEEPABLE)
def test_what_can_be_kept_is_read_as_it_is(value: object) -> None:
    assert read_json(json.dumps(value).encode()) == value
    assert read_json(b"\xef\xbb\xbf" + json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary() | st.text('[]{}",:-0123456789.eENaInfty\\ud8 \0').map(str.encode))
def test_what_is_read_can_go_on_and_all_else_is_refused(raw: bytes) -> None:
    with suppress(BadRequest):
        orjson.dumps(read_json(raw))


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 1_000_000, b"-" + b"9" * 5000])
def test_an_abyss_and_a_giant_are_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        read_json(raw)


def test_a_query_is_known_or_named() -> None:
    check_query(["limit", "metadata[team]", "metadata"], ["limit"], ["metadata"])
    for wrong in ("limits", "limit[a]", "meta", ""):
        with pytest.raises(BadRequest) as raised:
            check_query([wrong], ["limit"], ["metadata"])
        assert raised.value.param == wrong
        assert "limit, metadata[…]" in raised.value.message
