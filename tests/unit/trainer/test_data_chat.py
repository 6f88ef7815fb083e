"""Data for fine-tuning is refused by file, line and reason, before anything is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from services.trainer.recipes import chat_data
from services.trainer.recipes.api import RecipeError
from shared.contracts.jobs import FailureReason

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
USER, ANSWER = GOOD["messages"]


def refusal(folder: Path, *lines: object) -> str:
    """What is said of a file whose lines these are: objects as JSON, bytes as they are."""
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / "train.jsonl").write_bytes(b"\n".join(raw))
    with pytest.raises(RecipeError) as caught:
        chat_data.check(folder, "training_data")
    assert caught.value.reason is FailureReason.bad_data
    assert caught.value.param == "training_data"
    return caught.value.message


REFUSED: list[tuple[object, str]] = [
    (b'{"messages": [}', "not valid JSON: unexpected character, expected a JSON value at column 15"),
    (b'{"score": NaN, "messages": []}', "not valid JSON: NaN is no number of JSON at column 11"),
    (b'{"score": -Infinity}', "not valid JSON: Infinity is no number of JSON at column 12"),
    (
        b'{"a": "\\ud83d", "messages": []}',
        "not valid JSON: half a character (a \\uD800 to \\uDFFF without its other half) at column 8",
    ),
    (b'{"messages": "\xff"}', "not UTF-8: byte 0xff at offset 14 of the line"),
    (b"[1, 2]", "a JSON object is needed, not a list"),
    (b"null", "a JSON object is needed, not null"),
    ({"text": "Hi"}, "neither 'messages' nor 'prompt' and 'completion'"),
    ({}, "neither 'messages' nor 'prompt' and 'completion'"),
    ({"prompt": "Hi"}, "'completion' is missing"),
    ({"completion": "Hi"}, "'prompt' is missing"),
    ({"prompt": 1, "completion": "Hi"}, "'prompt' must be a string"),
    ({"prompt": "Hi", "completion": " \n"}, "'completion' is empty"),
    ({"prompt": "Hi", "completion": "Ho", "tools": []}, "unknown field 'tools'"),
    ({**GOOD, "tools": []}, "unknown field 'tools'"),
    ({**GOOD, "prompt": "Hi"}, "unknown field 'prompt'"),
    ({"messages": []}, "'messages' must be a list of at least one message"),
    ({"messages": "Hi"}, "'messages' must be a list of at least one message"),
    ({"messages": ["Hi"]}, "message 1 must be an object with 'role' and 'content'"),
    ({"messages": [{"content": "Hi"}, ANSWER]}, "message 1 has no 'role'"),
    ({"messages": [USER, {"role": "assistant"}]}, "message 2 has no 'content'"),
    (
        {"messages": [USER, {**ANSWER, "tool_calls": []}]},
        "message 2 has an unknown field 'tool_calls'",
    ),
    (
        {"messages": [{"role": "bot", "content": "Hi"}, ANSWER]},
        "message 1 has the role 'bot'; the roles are system, developer, user, assistant",
    ),
    (
        {"messages": [{"role": [], "content": "Hi"}]},
        "message 1 has the role []; the roles are " + ", ".join(chat_data.ROLES),
    ),
    ({"messages": [USER, {"role": "assistant", "content": " "}]}, "message 2 (assistant) is empty"),
    (
        {"messages": [USER, {"role": "assistant", "content": None}]},
        "message 2: 'content' must be a string or a list of text parts",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ANSWER]},
        "message 1 has a part of the type 'image_url'; only text can be learnt",
    ),
    ({"messages": [USER]}, "no message of the role 'assistant': there is no answer to learn"),
    ({"messages": [USER, ANSWER, USER]}, "the last message must be of the role 'assistant', not 'user'"),
    ({"messages": [ANSWER]}, "the first message is of the role 'assistant': there is no question that it answers"),
    (
        {"messages": [{**USER, "weight": 1}, ANSWER]},
        "message 1 has a 'weight', which only answers of the assistant may have",
    ),
    ({"messages": [USER, {**ANSWER, "weight": 2}]}, "message 2 has the weight 2; it must be 0 or 1"),
    ({"messages": [USER, {**ANSWER, "weight": 0}]}, "every answer has weight 0: there is nothing to learn"),
]


@pytest.mark.parametrize(("line", "reason"), REFUSED)
def test_a_wrong_line_is_refused_by_file_line_and_reason(tmp_path: Path, line: object, reason: str) -> None:
    assert refusal(tmp_path, GOOD, b"", line) == f"train.jsonl, line 3: {reason}"


def test_a_wrong_first_line_is_refused_too(tmp_path: Path) -> None:
    assert refusal(tmp_path, {"prompt": "Hi"}) == "train.jsonl, line 1: 'completion' is missing"


def test_two_forms_in_one_input_are_refused_by_both_lines(tmp_path: Path) -> None:
    said = refusal(tmp_path, GOOD, {"prompt": "Hi", "completion": "Ho"})
    assert said == (
        "train.jsonl, line 2: has 'prompt' and 'completion', but train.jsonl, line 1 has 'messages': use one form only"
    )


def test_data_without_a_sample_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, b" ", b"") == "The input training_data has no samples: all its lines are blank"


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "The input training_data is empty: train.jsonl has no bytes"


def test_an_input_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="The input training_data has no files"):
        chat_data.check(tmp_path, "training_data")


def test_openais_own_form_is_taken(tmp_path: Path) -> None:
    lines = [
        GOOD,
        {"messages": [{"role": "developer", "content": "Be kind."}, USER, {**ANSWER, "weight": 0}, USER, ANSWER]},
        {"messages": [{**USER, "name": "ann"}, {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]}]},
        {**GOOD, "metadata": {"source": "x"}, "id": 7},
    ]
    (tmp_path / "train.jsonl").write_text("\ufeff" + "\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")

    assert chat_data.check(tmp_path, "training_data") == 4
    taken = list(chat_data.samples(tmp_path, "training_data"))
    assert isinstance(taken[1], chat_data.Chat)
    assert [message["role"] for message in taken[1].messages] == ["system", "user", "assistant", "user", "assistant"]
    assert taken[1].trained == [False, False, False, False, True]
    assert isinstance(taken[2], chat_data.Chat)
    assert taken[2].messages[1]["content"] == "Hello"


def test_the_check_needs_no_torch() -> None:
    """So that bad data is refused within a second, not after the libraries are loaded."""
    code = "import sys; from services.trainer.recipes import sft, pretrain; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
