"""Pauses between tries that grow from try to try."""

from __future__ import annotations


class Backoff:
    """Each pause is twice as long as the one before, from `first_s` up to `longest_s`."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._next_s = first_s

    def next_s(self) -> float:
        """How long to wait now, in seconds."""
        pause_s, self._next_s = self._next_s, min(2 * self._next_s, self._longest_s)
        return pause_s

    def reset(self) -> None:
        """It worked: the next pause is the first again."""
        self._next_s = self._first_s
