"""A slip of who writes is an error, not a default."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError

from shared.contracts.recipes import RECIPES
from shared.contracts.written import Written, check_printable


class Example(Written):
    whole: int = 0
    part: float | None = None
    either: int | Literal["auto"] = "auto"
    flag: bool = False
    maybe: bool | None = None
    anything: Any = None
    things: dict[str, Any] = Field(default_factory=dict)


@pytest.mark.parametrize("field", ["whole", "part", "either"])
def test_truth_is_no_number(field: str) -> None:
    with pytest.raises(ValidationError, match="neither a number nor a text"):
        Example.model_validate({field: True})


@pytest.mark.parametrize("field", ["flag", "maybe", "anything"])
def test_truth_is_taken_where_it_is_asked_for(field: str) -> None:
    assert Example.model_validate({field: True, "things": {"a": True}}).model_dump()[field] is True


@pytest.mark.parametrize("job_type", RECIPES)
def test_no_parameter_of_a_recipe_takes_truth_for_a_number(job_type: str) -> None:
    params = RECIPES[job_type].params
    for name in params.model_fields:
        try:
            taken = getattr(params.model_validate({name: True}), name)
        except ValidationError:
            continue
        assert taken is True, name


@pytest.mark.parametrize("text", ["a\x00", "\x1b[2J", "a\nb", "\x7f", "\x9b", "\u2028", "\u202e", "\u2069"])
def test_what_hides_is_not_printable(text: str) -> None:
    with pytest.raises(ValueError, match=r"U\+[0-9A-F]{4}"):
        check_printable(text)


@pytest.mark.parametrize("text", ["", "späß 你好", "\u05e9\u05dc\u200f!", "👩‍🔬", "a\u00a0b"])
def test_all_languages_are(text: str) -> None:
    assert check_printable(text) == text
