"""One running system for all end-to-end tests that leave it as they found it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos.client import LLMOS
from tests.e2e.system import System


@pytest.fixture(scope="package")
def system() -> Iterator[System]:
    home = Path(tempfile.mkdtemp(prefix="llmos-e2e-", dir="/tmp"))
    system = System(home)
    try:
        system.up()
        yield system
        system.down()
    finally:
        if system.descendants():
            system.kill_everything()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="package")
def client(system: System) -> Iterator[LLMOS]:
    with system.client() as client:
        yield client
