"""What was once on the wire is read for ever: every golden file of every version."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from shared.contracts.inference import decode_frames, decode_item
from shared.contracts.jobs import RunMessage
from shared.contracts.message import Message, decode
from tests.contract.wire.examples import CANCEL, FRAMES, MESSAGES, REQUEST
from tests.contract.wire.make import FOLDER, golden_file, golden_files

BY_TYPE = {type(message).__name__: message for message in MESSAGES}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.name)
def test_a_message_of_every_version_is_read(path: Path) -> None:
    message = decode(path.read_bytes())
    example = BY_TYPE[path.name.split(".")[0]]
    assert (message.id, message.at, message.tenant, message.traceparent) == (
        example.id,
        example.at,
        example.tenant,
        example.traceparent,
    )
    if path == golden_file(example):
        assert message == example


def test_every_type_of_message_has_a_golden_file() -> None:
    vocabulary = {
        name
        for name, kind in Message.by_type.items()
        if kind.__module__.startswith("shared.contracts") and kind is not RunMessage
    }
    assert vocabulary == set(BY_TYPE), "give the new type an example in tests/contract/wire/examples.py"
    missing = [path.name for path in golden_files() if not path.exists()]
    assert not missing, "run `python -m tests.contract.wire.make` and commit what it writes"


def test_examples_fill_every_field() -> None:
    empty = {
        f"{name}.{field}"
        for name, message in BY_TYPE.items()
        for field in type(message).model_fields
        if field not in message.model_fields_set
    }
    assert not empty


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_this_version_still_sends_what_its_golden_files_say(message: Message) -> None:
    """A field more is fine, since readers ignore it; one less, or another meaning, needs a new version."""
    golden = orjson.loads(golden_file(message).read_bytes())
    sent = orjson.loads(message.encode())
    assert _within(golden["body"], sent["body"])
    assert {name: sent[name] for name in golden if name != "body"} == {
        name: value for name, value in golden.items() if name != "body"
    }


def _within(old: object, new: object) -> bool:
    """Whether everything in `old` is in `new` as it was."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(name in new and _within(value, new[name]) for name, value in old.items())
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_within, old, new))
    return old == new


def test_requests_cancels_and_frames_of_every_version_are_read() -> None:
    for path in FOLDER.glob("Request.*.msgpack"):
        assert decode_item(path.read_bytes()) == REQUEST
    for path in FOLDER.glob("Cancel.*.msgpack"):
        assert decode_item(path.read_bytes()) == CANCEL
    for path in FOLDER.glob("frames.*.msgpack"):
        assert decode_frames(path.read_bytes()) == FRAMES
