"""One running system of each shape for all end-to-end tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmos.client import LLMOS
from tests.e2e.system import System
from tests.e2e.systems import SHAPES, new_system


@pytest.fixture(scope="package", params=SHAPES)
def system(request: pytest.FixtureRequest) -> Iterator[System]:
    with new_system(request.param) as system:
        yield system


@pytest.fixture(scope="package")
def client(system: System) -> Iterator[LLMOS]:
    with system.client() as client:
        yield client
