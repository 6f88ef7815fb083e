"""The doorbell reaches the node over a real server, and its loss harms nothing."""

from __future__ import annotations

import logging
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


class Tries(logging.Filter):
    """Counts what Celery says of its connection."""

    seen = 0

    def filter(self, _: logging.LogRecord) -> bool:
        self.seen += 1
        return True


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


def test_a_server_that_is_away_is_logged_in_a_line_or_two_and_so_is_its_return(
    server: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    looked = threading.Semaphore(0)
    tries = Tries()
    consumer = logging.getLogger("celery.worker.consumer.consumer")
    consumer.addFilter(tries)
    worker = DoorbellWorker(server.unix_url, "there", looked.release)
    bell = CeleryDoorbell(server.unix_url)
    worker.start()
    try:
        bell.ring("there", "j", 1)
        assert looked.acquire(timeout=20)
        server.kill()
        eventually(lambda: tries.seen >= 4, 30)
        server.start()
        eventually(lambda: "the doorbell works again" in caplog.messages, 30)
    finally:
        worker.stop()
        bell.close()
        consumer.removeFilter(tries)
    said = [line for line in caplog.messages if "doorbell " in line]
    assert 2 <= len(said) <= 4, said
    assert not [line for line in caplog.messages if line.startswith("consumer: ")]
