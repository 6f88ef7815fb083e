"""All of a list, page by page, or the beginning of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Annotated

import typer

from llmos.calls import Json

After = Annotated[str | None, typer.Option(metavar="ID", help="Those after this id: the next page.")]
Limit = Annotated[int | None, typer.Option(min=1, help="How many (default: all).")]


def all_pages(page_after: Callable[[str | None], Json], after: str | None = None) -> Iterator[Json]:
    """Every item behind `after`; `page_after` gets the page behind an id."""
    while True:
        page = page_after(after)
        yield from page["data"]
        if not page["has_more"]:
            return
        after = page["data"][-1]["id"]


def first(limit: int | None, items: Iterable[Json]) -> tuple[list[Json], bool]:
    """So many of the items, and whether there are more."""
    if limit is None:
        return list(items), False
    found = list(islice(items, limit + 1))
    return found[:limit], len(found) > limit
