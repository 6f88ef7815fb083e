"""Samples for fine-tuning: chats (`messages`) or pairs (`prompt`, `completion`), checked line by line.

The chat form is that of OpenAI's fine-tuning files: roles `system`, `developer`, `user` and `assistant`, content as a
string or as text parts, and `weight: 0` on an answer that is only context.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.trainer.recipes.jsonl import Line, bad_data, data_files, json_lines

ROLES = ("system", "developer", "user", "assistant")
HARMLESS = frozenset({"id", "metadata"})
FORMS = 'A line is {"messages": [{"role": …, "content": …}, …]} or {"prompt": …, "completion": …}.'


@dataclass(frozen=True)
class Chat:
    """`trained[i]` says whether message i is an answer to learn."""

    messages: list[dict[str, str]]
    trained: list[bool]
    line: Line


@dataclass(frozen=True)
class Pair:
    prompt: str
    completion: str
    line: Line


Sample = Chat | Pair


def samples(folder: Path, param: str) -> Iterator[Sample]:
    """Every sample of an input, in order, one form only. Raises RecipeError at the first line that is wrong."""
    first: Line | None = None
    for name, path in data_files(folder, param):
        for line in json_lines(name, path, param):
            sample = parse(line)
            if first is None:
                first = line
            elif _is_chat(line) != _is_chat(first):
                here, there = _form(line), _form(first)
                raise line.refuse(f"has {here}, but {first.file}, line {first.number} has {there}: use one form only")
            yield sample


def check(folder: Path, param: str) -> int:
    """The number of samples, each checked. Raises RecipeError at the first wrong line, or where there are none."""
    count = sum(1 for _ in samples(folder, param))
    if not count:
        raise bad_data(f"The input {param} has no samples: all its lines are blank", param, FORMS)
    return count


def parse(line: Line) -> Sample:
    """One line as a sample. Raises RecipeError."""
    keys = line.value.keys() - HARMLESS
    if _is_chat(line):
        _only({"messages"}, keys, line)
        return _chat(line)
    if not keys & {"prompt", "completion"}:
        raise line.refuse("neither 'messages' nor 'prompt' and 'completion'", FORMS)
    _only({"prompt", "completion"}, keys, line)
    return Pair(_text(line, "prompt"), _text(line, "completion"), line)


def _is_chat(line: Line) -> bool:
    return "messages" in line.value


def _form(line: Line) -> str:
    return "'messages'" if _is_chat(line) else "'prompt' and 'completion'"


def _only(known: set[str], keys: set[str], line: Line) -> None:
    if unknown := sorted(keys - known):
        raise line.refuse(f"unknown field {unknown[0]!r}", FORMS)


def _text(line: Line, key: str) -> str:
    if key not in line.value:
        raise line.refuse(f"{key!r} is missing", FORMS)
    value = line.value[key]
    if not isinstance(value, str):
        raise line.refuse(f"{key!r} must be a string")
    if not value.strip():
        raise line.refuse(f"{key!r} is empty")
    return value


def _chat(line: Line) -> Chat:
    raw = line.value["messages"]
    if not isinstance(raw, list) or not raw:
        raise line.refuse("'messages' must be a list of at least one message", FORMS)
    messages, trained = [], []
    for number, message in enumerate(raw, 1):
        role, content = _message(message, number, line)
        messages.append({"role": role, "content": content})
        trained.append(_trained(message, number, line))
    if "assistant" not in {message["role"] for message in messages}:
        raise line.refuse("no message of the role 'assistant': there is no answer to learn")
    if messages[-1]["role"] != "assistant":
        raise line.refuse(f"the last message must be of the role 'assistant', not {messages[-1]['role']!r}")
    if messages[0]["role"] == "assistant":
        raise line.refuse("the first message is of the role 'assistant': there is no question that it answers")
    if not any(trained):
        raise line.refuse("every answer has weight 0: there is nothing to learn")
    return Chat(messages, trained, line)


def _message(message: object, number: int, line: Line) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise line.refuse(f"message {number} must be an object with 'role' and 'content'")
    for key in ("role", "content"):
        if key not in message:
            raise line.refuse(f"message {number} has no {key!r}")
    if unknown := sorted(message.keys() - {"role", "content", "name", "weight"}):
        raise line.refuse(f"message {number} has an unknown field {unknown[0]!r}")
    role = message["role"]
    if role not in ROLES:
        raise line.refuse(f"message {number} has the role {role!r}; the roles are {', '.join(ROLES)}")
    content = _content(message["content"], number, line)
    if not content.strip():
        raise line.refuse(f"message {number} ({role}) is empty")
    return ("system" if role == "developer" else role), content


def _content(content: object, number: int, line: Line) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise line.refuse(f"message {number}: 'content' must be a string or a list of text parts")
    return "".join(_part(part, number, line) for part in content)


def _part(part: Any, number: int, line: Line) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(part.get("text"), str):
        raise line.refuse(f"message {number} has a part of the type {kind!r}; only text can be learnt")
    return str(part["text"])


def _trained(message: dict[str, Any], number: int, line: Line) -> bool:
    weight = message.get("weight")
    if weight is None:
        return bool(message["role"] == "assistant")
    if message["role"] != "assistant":
        raise line.refuse(f"message {number} has a 'weight', which only answers of the assistant may have")
    if weight not in (0, 1):
        raise line.refuse(f"message {number} has the weight {weight!r}; it must be 0 or 1")
    return bool(weight)
