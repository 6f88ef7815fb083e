"""`llmos chat` and `llmos complete`: what a model says, and what it cannot."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace as Fake
from typing import Any

import httpx
import openai
import orjson
import pytest

from llmos.cli import main
from llmos.cli.session import Session

NO_TEMPLATE = (
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if the "
    "tokenizer does not define one."
)


class Client:
    """A system with one model, which goes on with any text, and has no chat template."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.completions = Fake(create=self._complete)
        self.chat = Fake(completions=Fake(create=self._refuse))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None: ...

    def openai(self) -> Client:
        return self

    def _complete(self, **asked: Any) -> Any:
        self.asked.append(asked)
        return self._stream() if asked.get("stream") else Fake(model_dump=lambda: {"choices": [{"text": " time"}]})

    def _stream(self) -> Iterator[Fake]:
        for piece in (" upon", " a", " time\x1b[2J"):
            yield Fake(choices=[Fake(text=piece)])
        yield Fake(choices=[])

    def _refuse(self, **_: Any) -> Any:
        answer: Any = httpx.Response(400, request=httpx.Request("POST", "http://here/v1/chat/completions"))
        raise openai.BadRequestError(NO_TEMPLATE, response=answer, body={"message": NO_TEMPLATE})


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client()
    monkeypatch.setattr(Session, "client", lambda _: client)
    return client


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["llmos", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_text_is_gone_on_with(
    client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "complete", "tiny", "Once", "--max-tokens", "3", "--temperature", "0") == 0
    assert capsys.readouterr().out == " upon a time\\x1b[2J\n"
    assert client.asked == [{"model": "tiny", "prompt": "Once", "stream": True, "max_tokens": 3, "temperature": 0}]
    assert run(monkeypatch, "complete", "tiny", "Once", "--json") == 0
    assert orjson.loads(capsys.readouterr().out) == {"choices": [{"text": " time"}]}


def test_a_model_that_cannot_chat_is_said_with_what_can_be_done(
    client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "chat", "tiny", "hi") == 2
    told = capsys.readouterr().err
    assert "this model has no chat template" in told
    assert "llmos complete MODEL TEXT" in told
    assert "transformers" not in told
