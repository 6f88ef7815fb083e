"""What goes out: the JSON of every resource."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any


def unix(moment: datetime | None) -> int | None:
    """Seconds since 1970, as OpenAI's objects have them."""
    return int(moment.timestamp()) if moment else None


def listed(data: Sequence[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """One page of a list."""
    ids = [item.get("id") for item in data]
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return {"object": "list", "data": list(data), "has_more": has_more, "first_id": first, "last_id": last}
