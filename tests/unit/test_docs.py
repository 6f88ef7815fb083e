"""The docs name what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.gateway.view.follower import MOST_WAITING
from shared.contracts.recipes import RECIPES

DOCS = Path(__file__).parents[2] / "docs"
API = (DOCS / "api.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("job_type", RECIPES)
def test_every_parameter_and_input_of_a_job_type_is_documented(job_type: str) -> None:
    recipe = RECIPES[job_type]
    assert f"### `{job_type}`" in API
    undocumented = [name for name in (*recipe.params.model_fields, *recipe.inputs) if f"`{name}`" not in API]
    assert undocumented == []


def test_how_far_the_lag_of_a_state_topic_is_counted_is_documented() -> None:
    lines = (DOCS / "operations.md").read_text(encoding="utf-8").splitlines()
    assert f"no more than {MOST_WAITING:,} " in next(line for line in lines if "`llmos_view_lag_records`" in line)
