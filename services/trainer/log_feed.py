"""The lines of a run's log: out of a byte stream, in batches, not too many, and the last ones at hand."""

from __future__ import annotations

import threading
from collections import deque

MAX_LINE = 4_000
"""Characters; the rest of a line is cut."""
MAX_UNFINISHED_BYTES = 64 * 1024
MAX_LINES_PER_S = 500
MAX_BATCH = 200
MAX_BATCH_CHARACTERS = 60_000
"""So that a batch stays a small message on the bus, whatever its characters become in UTF-8 and JSON."""
BATCH_S = 0.2
TAIL = 50
MAX_TAIL_LINE = 500
"""Characters: the tail goes into the failure, and that into the job's state."""


class LineSplitter:
    """Bytes to lines. A line that overwrites itself with carriage returns (a progress bar) counts as its last state."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False

    def feed(self, data: bytes) -> list[str]:
        *whole, self._rest = (self._rest + data).split(b"\n")
        lines = []
        for raw in whole:
            if not self._skipping:
                lines.append(_text(raw))
            self._skipping = False
        self._rest = _last_state(self._rest)
        if len(self._rest) > MAX_UNFINISHED_BYTES:
            if not self._skipping:
                lines.append(_text(self._rest))
            self._rest, self._skipping = b"", True
        return lines

    def end(self) -> list[str]:
        """What came after the last newline."""
        rest, self._rest = self._rest, b""
        return [_text(rest)] if rest and not self._skipping else []


class LogFeed:
    """Collects lines from any thread; `take` hands them out when a batch is due."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._lines: list[str] = []
        self._tail: deque[str] = deque(maxlen=TAIL)
        self._due_s: float | None = None
        self._second = 0
        self._this_second = 0
        self._left_out = 0

    def add(self, lines: list[str], now_s: float) -> None:
        with self._guard:
            for line in lines:
                self._tail.append(line if len(line) <= MAX_TAIL_LINE else line[:MAX_TAIL_LINE] + "…")
                self._admit(line, now_s)
            if self._lines and self._due_s is None:
                self._due_s = now_s + BATCH_S

    def take(self, now_s: float, everything: bool = False) -> list[str]:
        """The next batch, or nothing while it is not due."""
        with self._guard:
            if everything or int(now_s) != self._second:
                self._confess()
            if not self._lines or not (everything or len(self._lines) >= MAX_BATCH or now_s >= (self._due_s or 0)):
                return []
            count = _fitting(self._lines)
            batch, self._lines = self._lines[:count], self._lines[count:]
            self._due_s = now_s if self._lines else None
            return batch

    def tail(self) -> list[str]:
        """The last lines, also those that were left out."""
        with self._guard:
            return list(self._tail)

    def _admit(self, line: str, now_s: float) -> None:
        if int(now_s) != self._second:
            self._confess()
            self._second, self._this_second = int(now_s), 0
        self._this_second += 1
        if self._this_second > MAX_LINES_PER_S:
            self._left_out += 1
        else:
            self._lines.append(line)

    def _confess(self) -> None:
        if self._left_out:
            self._lines.append(f"… {self._left_out} lines left out: more than {MAX_LINES_PER_S} came in a second")
            self._left_out = 0


def _fitting(lines: list[str]) -> int:
    """How many of the first lines make one batch; at least one."""
    size = 0
    for count, line in enumerate(lines[:MAX_BATCH]):
        size += len(line)
        if count and size > MAX_BATCH_CHARACTERS:
            return count
    return min(len(lines), MAX_BATCH)


def _last_state(raw: bytes) -> bytes:
    """What is left of a line after its last carriage return but one at the very end."""
    return raw[raw.rfind(b"\r", 0, max(0, len(raw) - 1)) + 1 :]


def _text(raw: bytes) -> str:
    text = _last_state(raw).removesuffix(b"\r").decode("utf-8", errors="replace").replace("\x00", "\ufffd")
    return text if len(text) <= MAX_LINE else f"{text[:MAX_LINE]}… ({len(text) - MAX_LINE} more characters cut)"
