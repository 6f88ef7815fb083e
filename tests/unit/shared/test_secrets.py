"""Secrets: from the environment or from files, and never the ones that everybody can read in the example."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared import settings
from shared.settings import SettingsError, load_settings


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setattr(settings, "SECRETS", folder)
    return folder


def test_a_secret_may_lie_in_a_file_and_the_environment_goes_first(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (secrets / "LLMOS_S3_SECRET_KEY").write_text("from-a-file\n")
    (secrets / "something_else").write_text("of another program")
    assert load_settings().s3_secret_key == "from-a-file"
    monkeypatch.setenv("LLMOS_S3_SECRET_KEY", "from-the-environment")
    assert load_settings().s3_secret_key == "from-the-environment"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("S3_SECRET_KEY", "change-me-minio"),
        ("DB_URL", "postgresql+psycopg://gateway:change-me-gateway@postgres/gateway"),
    ],
)
def test_a_secret_of_the_example_is_refused_but_for_a_trial(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"LLMOS_{name}", value)
    with pytest.raises(SettingsError, match=f"LLMOS_{name}") as refused:
        load_settings()
    assert value not in str(refused.value)
    monkeypatch.setenv("LLMOS_DEV", "1")
    assert load_settings().dev
