"""What the integration tests stand on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ground import GROUNDS, Ground, opened
from tests.s3_server import S3Server, minio_server


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for the whole run, a bucket for each test."""
    with minio_server(tmp_path_factory.mktemp("minio")) as server:
        yield server


@pytest.fixture(params=GROUNDS)
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    """The test runs on every ground, each its own and empty at the start."""
    with opened(request.param, request, tmp_path) as ground:
        yield ground


@pytest.fixture(scope="module", params=GROUNDS)
def lasting_ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """A ground that a module's tests share."""
    with opened(request.param, request, tmp_path_factory.mktemp("ground")) as ground:
        yield ground
