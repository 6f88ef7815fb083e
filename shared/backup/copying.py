"""Many objects from one store to another, several at once, each verified by its hash on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Protocol, TypeVar

AT_ONCE = 4
WINDOW = 256

T = TypeVar("T")
R = TypeVar("R")


class Progress(Protocol):
    """Told what is going on."""

    def step(self, sentence: str, total_bytes: int = 0) -> None:
        """Something new begins; so many bytes are to be moved for it."""

    def moved(self, count: int) -> None:
        """So many more bytes have moved."""


class Silent:
    """Tells nobody."""

    def step(self, sentence: str, total_bytes: int = 0) -> None:
        pass

    def moved(self, count: int) -> None:
        pass


def side_by_side(work: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Each item with its result, in their order. What an item raises ends it all, after those at work."""
    rest = iter(items)
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="copy") as pool:
        while window := list(islice(rest, WINDOW)):
            yield from zip(window, pool.map(work, window), strict=True)
