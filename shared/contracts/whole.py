"""What tells a table that lacks a key since it was deleted from one that was wiped, or is being filled."""

from __future__ import annotations

from datetime import datetime

from shared.contracts.message import Message

WHOLE = "#whole"
"""The key of `TableWhole`, on every compacted topic whose owner says it."""


class TableWhole(Message):
    """A compacted topic's owner has seen it show every key that there was at `as_of`. A key that is older and not there
    was deleted. Without this word, since the topic was wiped or is only being filled, a missing key means nothing."""

    as_of: datetime
