"""Server-sent events, read line by line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import orjson

from llmos.calls import Json


@dataclass(frozen=True)
class ServerEvent:
    """One event: where it stands in its stream, and what it says."""

    id: str
    data: Json


class EventParser:
    """Server-sent events, of which only `id` and `data` are used here (WHATWG HTML, section 9.2.6)."""

    def __init__(self) -> None:
        self._id = ""
        self._data: list[str] = []

    def feed(self, line: str) -> ServerEvent | None:
        """One line without its end; the event when the line completes one."""
        if line.startswith("id:"):
            self._id = line[3:].strip()
        elif line.startswith("data:"):
            self._data.append(line[5:].removeprefix(" "))
        elif not line and self._data:
            text, self._data = "\n".join(self._data), []
            return None if text == "[DONE]" else ServerEvent(self._id, orjson.loads(text))
        return None


def server_events(lines: Iterator[str]) -> Iterator[ServerEvent]:
    """The events in a stream of lines."""
    parser = EventParser()
    for line in lines:
        if event := parser.feed(line):
            yield event
