"""All of a list, page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llmos.calls import Json


def all_pages(page_after: Callable[[str | None], Json]) -> Iterator[Json]:
    """Every item; `page_after` gets the page behind an id."""
    after: str | None = None
    while True:
        page = page_after(after)
        yield from page["data"]
        if not page["has_more"]:
            return
        after = page["data"][-1]["id"]
