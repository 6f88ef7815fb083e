"""Ids that sort by the time of their making, so that a list can go on after one that is gone."""

from __future__ import annotations

import secrets
import time


def new_id(prefix: str) -> str:
    """`prefix-` and 28 hex digits: milliseconds since 1970, then chance."""
    return f"{prefix}-{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}"
