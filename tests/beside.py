"""Servers that lie beside the project: where they are, tests use them; where not, they skip and say so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = [ROOT.parent / folder for folder in ("servers", "shared/servers")]


def script(name: str) -> Path | None:
    """The start script `name`, such as `kafka/kafka.sh`."""
    return next((found for folder in FOLDERS if (found := folder / name).exists()), None)


def go_without(how_to_get_one: str) -> NoReturn:
    """Skip on a laptop; in CI a missing server is a failure."""
    if os.environ.get("CI"):
        pytest.fail(how_to_get_one)
    pytest.skip(how_to_get_one)
