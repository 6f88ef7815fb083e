"""What tells a table that lacks a key since it was deleted from one that was wiped, or is being filled."""

from __future__ import annotations

from datetime import datetime

from shared.contracts.message import Message

BOOKMARK = "#bookmark"
"""The key of `TableBookmark`, on every compacted topic whose owner keeps one there."""


class TableBookmark(Message):
    """What a compacted topic shows, as its owner has compared it with the truth, again and again without a gap: at each
    time from `complete_since` to `complete_until` it showed, or was about to show, every key that there was.

    Like the bookmarks of a Kubernetes watch it says how far a reader may believe what it has read: a key that was there
    all that time, or never, is so in the truth. Of a table without one, a missing key means nothing.
    """

    complete_since: datetime
    complete_until: datetime
