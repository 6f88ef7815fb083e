"""A body passes through as the client wrote it, but for its model; what is broken is refused with where and why."""

from __future__ import annotations

import json

import pytest

from services.gateway.inference.body import Body
from services.gateway.inference.call import make_call
from services.gateway.inference.errors import InvalidRequest
from services.gateway.inference.predict import read_answer, read_question


def test_only_the_model_changes() -> None:
    fields = (
        b'"seed":123456789012345678901234567890,"temperature":1.0e-05,"x":{"deep":[1.10,null,"\\u00e9"]},"max":1E400'
    )
    body = Body(b'{"model":"tiny",' + fields + b"}")
    assert body.model == "tiny"
    assert body.with_model("tiny@3") == b'{"model":"tiny@3",' + fields + b"}"


def test_a_body_can_be_sent_again_to_another_version() -> None:
    body = Body(b'{"model": "tiny"}')
    assert [json.loads(body.with_model(ref))["model"] for ref in ("a@1", "b@2")] == ["a@1", "b@2"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"model": nope}',
        b'{"model": "a", "x": [1,2}',
    ],
)
def test_what_is_no_json_says_where_it_breaks(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON") as raised:
        Body(raw)
    assert raised.value.status == 400


@pytest.mark.parametrize("raw", [b"\xff", b'{"a\xff": 1}', b'{"model": "a", "prompt": "\xff"}'])
def test_what_is_no_utf8_says_where_it_breaks(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match=f"not valid UTF-8: byte {raw.index(0xFF) + 1}"):
        Body(raw)


def test_malformed_json_names_the_position() -> None:
    with pytest.raises(InvalidRequest, match="byte 11"):
        Body(b'{"model": nope}')


@pytest.mark.parametrize("raw", [b"[]", b"1", b'"model"', b"null"])
def test_a_body_must_be_an_object(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="JSON object"):
        Body(raw)


@pytest.mark.parametrize("raw", [b"{}", b'{"model": null}', b'{"model": 3}', b'{"model": ""}', b'{"model": ["a"]}'])
def test_a_body_must_name_a_model(raw: bytes) -> None:
    with pytest.raises(InvalidRequest) as raised:
        Body(raw)
    assert raised.value.param == "model"


def test_a_body_nested_without_end_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        Body(b'{"model": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


@pytest.mark.parametrize("header", ["0", "-5", "1.5", "soon", "", "²", "99999999999"])
async def test_a_deadline_that_is_no_number_is_refused(header: str) -> None:
    scope = {"type": "http", "headers": [(b"x-request-timeout-ms", header.encode("latin-1"))]}
    with pytest.raises(InvalidRequest, match="x-request-timeout-ms"):
        make_call(scope, "/v1/completions", "default", Body(b'{"model": "a"}'), 600)


async def test_a_deadline_is_the_clients_or_the_default() -> None:
    body = Body(b'{"model": "a"}')
    own = {"type": "http", "headers": [(b"x-request-timeout-ms", b"1500")]}
    assert make_call(own, "/", "default", body, 600).timeout_s == 1.5
    assert make_call({"type": "http", "headers": []}, "/", "default", body, 600).timeout_s == 600


def asked(**question: object) -> tuple[str, dict[str, object]]:
    path, body = read_question(json.dumps(question).encode())
    return path, json.loads(body.with_model("tiny@1"))


@pytest.mark.parametrize("field", ["prompt", "input", "text"])
def test_predict_asks_a_completion_for_a_text(field: str) -> None:
    path, body = asked(model_id="tiny", parameters={"max_tokens": 5}, temperature=0, **{field: "Hello"})
    assert path == "/v1/completions"
    assert body == {"model": "tiny@1", "prompt": "Hello", "max_tokens": 5, "temperature": 0, "stream": False}


def test_predict_asks_a_chat_for_messages() -> None:
    messages = [{"role": "user", "content": "Hello"}]
    path, body = asked(model="tiny", messages=messages)
    assert path == "/v1/chat/completions"
    assert body == {"model": "tiny@1", "messages": messages, "stream": False}


@pytest.mark.parametrize(
    ("question", "param"),
    [({"input": "x"}, "model_id"), ({"model_id": "a"}, "input"), ({"model_id": "a", "parameters": 3}, "parameters")],
)
def test_predict_names_what_is_missing(question: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        asked(**question)
    assert raised.value.param == param


def test_predict_answers_one_text_or_a_list() -> None:
    one = read_answer(b'{"model": "tiny@1", "choices": [{"text": "a"}], "usage": {"total_tokens": 3}}')
    assert json.loads(one) == {"model_id": "tiny@1", "output": "a", "usage": {"total_tokens": 3}}
    several = read_answer(b'{"model": "t@1", "choices": [{"message": {"content": "a"}}, {"text": "b"}]}')
    assert json.loads(several)["output"] == ["a", "b"]
