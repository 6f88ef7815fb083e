"""The lesson and the exam: docs/faq.md, parsed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import orjson

from llmos.errors import LLMOSError

FAQ_FILE = Path(__file__).parents[2] / "docs" / "faq.md"
HELD_OUT = 2
"""The last wordings of each question are the exam."""


@dataclass(frozen=True)
class Entry:
    """One answer and all the ways to ask for it."""

    answer: str
    keys: tuple[str, ...]
    """What a right answer has to say."""
    wordings: tuple[str, ...]

    @property
    def lesson(self) -> tuple[str, ...]:
        return self.wordings[:-HELD_OUT]

    @property
    def exam(self) -> tuple[str, ...]:
        return self.wordings[-HELD_OUT:]


@dataclass(frozen=True)
class Question:
    """One held-out question of the exam."""

    text: str
    keys: tuple[str, ...]

    def score(self, answer: str) -> float:
        """The part of the keys that the answer says, 0 to 1."""
        said = " ".join(answer.lower().split())
        return sum(key.lower() in said for key in self.keys) / len(self.keys)


def read_faq(file: Path = FAQ_FILE) -> list[Entry]:
    """The entries of the FAQ: below each `##` heading the answer, then its wordings as a list."""
    if not file.exists():
        raise LLMOSError(f"the demo's questions are not at {file}: run it from a clone of the repository")
    entries = []
    for section in file.read_text(encoding="utf-8").split("\n## ")[1:]:
        lines = section.splitlines()[1:]
        answer = " ".join(line.strip() for line in lines if line.strip() and not line.startswith("- "))
        wordings = tuple(line[2:].strip() for line in lines if line.startswith("- "))
        keys = tuple(re.findall(r"\*\*(.+?)\*\*", answer))
        entries.append(Entry(answer.replace("**", "").replace("`", ""), keys, wordings))
    return entries


def lesson_jsonl(entries: list[Entry]) -> bytes:
    """The lesson as chats, one a line, in the form that OpenAI's fine-tuning takes. Entries are interleaved."""
    rows = []
    for turn in range(max(len(entry.lesson) for entry in entries)):
        for entry in entries:
            if turn < len(entry.lesson):
                user = {"role": "user", "content": entry.lesson[turn]}
                rows.append(orjson.dumps({"messages": [user, {"role": "assistant", "content": entry.answer}]}))
    return b"\n".join(rows) + b"\n"


def exam(entries: list[Entry]) -> list[Question]:
    return [Question(text, entry.keys) for entry in entries for text in entry.exam]
