"""What people read on the terminal."""

from __future__ import annotations

import pytest

from llmos.cli.models import default_name
from llmos.cli.output import duration, size


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2 * 10**12, "2.0 TB")])
def test_sizes_are_for_people(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0s"), (59, "59s"), (90, "1m30s"), (3660, "1h01m"), (90_000, "1d1h")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("source", "name"), [("Org/Model-7B", "model-7b"), ("/models/x.Q4_1.gguf", "x.q4_1"), ("./my model/", "my-model")]
)
def test_an_import_gets_a_name_from_its_source(source: str, name: str) -> None:
    assert default_name(source) == name
