"""A base model that cannot be had is the user's to mend, at the first attempt."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.trainer.execution import SilentReporter
from services.trainer.recipes.api import RecipeContext, RecipeError
from services.trainer.recipes.base_model import fetch, find_base_model
from shared.contracts.jobs import FailureReason, JobSpec
from shared.contracts.recipes import SftParams
from tests.ports import free_port


@pytest.mark.timeout(60)
def test_a_hub_model_without_a_network_is_refused_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    params = {"base_model": "no-such/hub-model"}
    spec = JobSpec(type="sft", params=params, output="tuned")
    context = RecipeContext(spec, {}, tmp_path, None, SilentReporter(), lambda: False)
    with pytest.raises(RecipeError, match=r"'no-such/hub-model' is no path .* hub cannot be reached") as caught:
        fetch(find_base_model(context, SftParams.model_validate(params)), context)
    assert caught.value.reason is FailureReason.input_missing
    assert "name or the network" in caught.value.hint
