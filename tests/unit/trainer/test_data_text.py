"""Text for pretraining is refused by file, place and reason, and comes whole through its pieces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer.recipes import text_data
from services.trainer.recipes.api import RecipeError


def refusal(folder: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        text_data.check(folder, "training_data")
    assert caught.value.param == "training_data"
    return caught.value.message


def test_bytes_that_are_no_utf8_are_refused_by_line_and_offset(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntw\xe9o\n")
    assert refusal(tmp_path) == "a.txt, line 2: not UTF-8: byte 0xe9 at offset 6 of the file"


def test_the_offset_is_right_far_into_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_data, "CHUNK_BYTES", 16)
    good = "zwölf Boxkämpfer\n".encode() * 50
    (tmp_path / "a.txt").write_bytes(good + b"\xff")
    assert refusal(tmp_path) == f"a.txt, line 51: not UTF-8: byte 0xff at offset {len(good)} of the file"


def test_a_letter_cut_off_at_the_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc\xc3")
    assert refusal(tmp_path) == "a.txt, line 1: not UTF-8: byte 0xc3 at offset 3 of the file"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"txt": "a"}, "'text' is missing"),
        ({"text": 1}, "'text' must be a string"),
        ({"text": " "}, "'text' is empty"),
        ({"text": "a", "label": 1}, "unknown field 'label'"),
        (["a"], "a JSON object is needed, not a list"),
    ],
)
def test_a_wrong_json_line_is_refused(tmp_path: Path, line: object, reason: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "fine", "meta": {}}) + "\n" + json.dumps(line))
    assert refusal(tmp_path) == f"a.jsonl, line 2: {reason}"


def test_white_space_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n\t\n")
    assert refusal(tmp_path) == "The input training_data has no text: there is nothing but white space"


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    assert refusal(tmp_path) == "The input training_data is empty: a.txt has no bytes"


def test_documents_end_with_their_file_or_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffone\ntwo", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n{"text": "four"}\n')
    end = text_data.END
    pieces = list(text_data.pieces(tmp_path, "training_data"))
    assert [piece for piece in pieces if piece != "\n"] == ["one\n", "two", end, "three", end, "four", end]


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff"), min_size=1, max_size=200))
def test_nothing_is_lost_or_doubled_between_pieces(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.txt").write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_data, "CHUNK_BYTES", 8)
        pieces = list(text_data.pieces(folder, "training_data"))
    assert pieces.pop() is text_data.END
    assert "".join(piece or "" for piece in pieces) == text
