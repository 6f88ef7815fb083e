"""The demo's lesson and exam."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace as Fake
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from llmos.cli import demo as demo_command
from llmos.cli.app import app
from llmos.cli.output import console
from llmos.demo.faq import Question, exam, lesson_jsonl, read_faq
from llmos.demo.play import play, what_next
from tests.ports import free_port

SAID = "[/red] no [bold]markup"


def test_every_answer_says_its_own_keys() -> None:
    for entry in read_faq():
        assert entry.keys
        assert Question("", entry.keys).score(entry.answer) == 1


def test_no_question_of_the_exam_is_in_the_lesson() -> None:
    entries = read_faq()
    lesson = {orjson.loads(line)["messages"][0]["content"] for line in lesson_jsonl(entries).splitlines()}
    asked = {question.text for question in exam(entries)}
    assert len(lesson) == 60
    assert len(asked) == 20
    assert not lesson & asked


def test_the_score_is_the_part_of_the_keys_that_is_said() -> None:
    question = Question("", ("self-hosted", "language model"))
    assert question.score("A Self-Hosted\nthing") == 0.5
    assert question.score("nothing") == 0


class Api:
    """An `openai` client whose model always says the same."""

    files = Fake(create=lambda **_: Fake(id="file-1"), wait_for_processing=lambda *_, **__: None)
    fine_tuning = Fake(jobs=Fake(create=lambda **_: Fake(id="j")))

    def __init__(self) -> None:
        self.chat = Fake(completions=Fake(create=self._chat))
        self.completions = Fake(create=self._complete)

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None: ...

    def _chat(self, **_: Any) -> Iterator[Fake]:
        yield Fake(usage=None, choices=[Fake(delta=Fake(content=SAID))])
        yield Fake(usage=Fake(completion_tokens=2), choices=[])

    def _complete(self, **_: Any) -> Iterator[Fake]:
        yield Fake(choices=[Fake(text=SAID)])


def test_the_demo_shows_what_a_model_says_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"train_loss_first": 3.0, "train_loss": 1.0, "tokens_per_second": 120.0}
    job = {"id": "j", "type": "sft", "status": "succeeded", "metrics": figures, "outputs": [{"ref": "a@1"}]}
    replica = {"adapters": ["a@1"], "failed_adapters": {}, "reason": ""}
    client: Any = Fake(
        openai=Api,
        submit_job=lambda *_, **__: job,
        get_job=lambda _: job,
        deploy=lambda *_, **__: {},
        get_deployment=lambda _: {"status": "ready", "problem": "", "replica_statuses": [replica]},
        undeploy=lambda _: {},
    )
    facts = dict(play(client, console, "/home"))
    what_next(console, kept=True)
    told = capsys.readouterr().out
    assert told.count(SAID) >= 2 + 2 * 3
    assert facts["fine-tuned"] == "a@1 (LoRA on a@1)"
    assert facts["  exam, adapter"].startswith("0 % of 20")


@pytest.mark.parametrize(
    "where", [("--url", "{}"), ("demo", "--url", "{}"), ()], ids=["before", "after", "environment"]
)
def test_a_demo_on_a_system_that_is_named_starts_none_here(
    where: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    words = [word.format(nowhere) for word in where]
    if not words:
        monkeypatch.setenv("LLMOS_URL", nowhere)
    monkeypatch.setattr(demo_command, "start_detached", lambda *_: pytest.fail("a system was started"))
    said = CliRunner().invoke(
        app, ["--home", str(tmp_path), "--key", "k", *words, *([] if "demo" in words else ["demo"])]
    )
    assert said.exit_code != 0
    assert nowhere in said.output
