"""The demo's lesson and exam."""

from __future__ import annotations

import orjson

from llmos.demo.faq import Question, exam, lesson_jsonl, read_faq


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
