"""The docs name what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.contracts.recipes import RECIPES

API = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("job_type", RECIPES)
def test_every_parameter_and_input_of_a_job_type_is_documented(job_type: str) -> None:
    recipe = RECIPES[job_type]
    assert f"### `{job_type}`" in API
    undocumented = [name for name in (*recipe.params.model_fields, *recipe.inputs) if f"`{name}`" not in API]
    assert undocumented == []
