"""Systems of both shapes, for the fixtures of the end-to-end tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.backing_servers import backing_servers
from tests.e2e.cluster import Cluster
from tests.e2e.embedded import Embedded
from tests.e2e.system import System

SHAPES: Mapping[str, type[System]] = {"embedded": Embedded, "cluster": Cluster}


@contextmanager
def new_system(shape: str, settings: Mapping[str, str] | None = None) -> Iterator[System]:
    """A system that is up, and gone afterwards with all that it held."""
    if shape == "cluster":
        with new_cluster(settings) as cluster:
            cluster.up()
            yield cluster
        return
    with _home() as home:
        system = Embedded(home, settings)
        try:
            system.up()
            yield system
            if system.descendants():
                system.down()
        finally:
            system.kill_everything()


@contextmanager
def new_cluster(settings: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """Servers without topics and bucket, and no service yet. All of it is gone afterwards."""
    with _home() as home, backing_servers() as servers:
        cluster = Cluster(home, servers, settings)
        try:
            yield cluster
            cluster.down()
        finally:
            cluster.kill_everything()


@contextmanager
def _home() -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="llmos-e2e-", dir="/tmp"))  # a socket's path may have only 107 bytes
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)
