"""One cluster for all that goes on after a bad day."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.systems import new_cluster

SETTINGS = {"LLMOS_SLOTS": "4", "LLMOS_MAX_UNPUBLISHED": "20"}
"""Many jobs at once, and soon too many for a bus that is away."""


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """Nothing is made on its servers yet, and no service runs."""
    with new_cluster(SETTINGS) as cluster:
        yield cluster
