"""Text from elsewhere, made harmless: names, log lines and what models say may hold orders to the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

# The control codes of ASCII and Latin-1, what breaks a line or turns its direction, and lone surrogates.
HARMFUL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
LAYOUT = "\n\t"


def printable(text: str, keep: str = "") -> str:
    """`text` with every control character but those in `keep` written out: an ESC becomes the four letters `\\x1b`."""
    return HARMFUL.sub(lambda found: found[0] if found[0] in keep else _written_out(found[0]), text)


def printable_json(document: str) -> str:
    """The same for a JSON document, which stays the same document: control characters stand only in its strings."""
    return HARMFUL.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", document)


def _written_out(character: str) -> str:
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character) or (
        f"\\x{ord(character):02x}" if ord(character) < 0x100 else f"\\u{ord(character):04x}"
    )


class Terminal(Console):
    """A console that nothing printed on it can take over: only its own styles and movements reach the terminal."""

    def __init__(self, **options: Any) -> None:
        # No markup, no emoji codes: names, reasons and what models say may hold brackets of their own.
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text, LAYOUT), style, control)
