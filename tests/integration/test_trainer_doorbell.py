"""The doorbell reaches the node over a real server, and its loss harms nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from services.trainer.doorbell import DoorbellWorker
from shared.doorbell.celery import CeleryDoorbell
from tests.servers import ValkeyServer, valkey
from tests.waiting import eventually


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with valkey(durable=False) as server:
        yield server


def test_a_ring_makes_the_node_look_also_after_the_server_was_away(server: ValkeyServer) -> None:
    looked = threading.Semaphore(0)
    worker = DoorbellWorker(server.unix_url, "here", looked.release)
    bell = CeleryDoorbell(server.unix_url)
    worker.start()
    try:
        bell.ring("here", "j", 1)
        assert looked.acquire(timeout=20)
        bell.ring("elsewhere", "j", 1)
        server.kill()
        bell.ring("here", "j", 2)
        eventually(lambda: bell.dropped >= 1)
        server.start()

        def heard() -> bool:
            bell.ring("here", "j", 3)
            return looked.acquire(timeout=0.2)

        eventually(heard, 30)
    finally:
        worker.stop()
        bell.close()
