"""What makes two requests the same one."""

from __future__ import annotations

import pytest

from services.gateway.bodies import hash_of


def test_spaces_and_the_order_of_fields_do_not_matter() -> None:
    assert hash_of(b'{"a": 1, "b": 2}') == hash_of(b'{"b":2,"a":1}')
    assert hash_of(b'{"a": 1}') != hash_of(b'{"a": 2}')


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 500 + b"]" * 500, b"[" * 5000])
def test_every_body_has_a_hash(body: bytes) -> None:
    assert len(hash_of(body)) == 64
