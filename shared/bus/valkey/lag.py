"""How far a group is behind."""

from __future__ import annotations

import redis

from shared.bus.valkey import layout

CHUNK = 1000


def lag(server: redis.Redis, stream: str, group: str) -> int:
    """Entries of the stream that the group has not acknowledged; all of them for a group that never came."""
    if not server.exists(stream):
        return 0
    found = next((one for one in server.xinfo_groups(stream) if one["name"] == group.encode()), None)
    if found is None:
        return int(server.xlen(stream))
    unread = found["lag"]
    if unread is None:  # the server lost count, which it does when entries were deleted by hand
        unread = _count_after(server, stream, layout.text(found["last-delivered-id"]))
    return int(found["pending"]) + int(unread)


def _count_after(server: redis.Redis, stream: str, last: str) -> int:
    total = 0
    while ids := [layout.text(entry[0]) for entry in server.xrange(stream, min=f"({last}", count=CHUNK) or []]:
        total += len(ids)
        last = ids[-1]
    return total
