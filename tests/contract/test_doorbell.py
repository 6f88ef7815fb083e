"""What every doorbell promises: never to block, never to raise, and mostly to ring."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import pytest

from shared import doorbell
from shared.doorbell.celery import WAITING_RINGS, CeleryDoorbell, broker_url
from shared.doorbell.memory import MemoryDoorbell
from shared.doorbell.port import Doorbell
from shared.settings import SettingsError
from tests.servers import valkey
from tests.waiting import eventually

Heard = list[tuple[str, int]]


@dataclass
class DoorbellWorld:
    """`heard` is what node `here` has heard so far."""

    bell: Doorbell
    heard: Callable[[], Heard]
    flush: Callable[[], object]


@contextmanager
def memory_world() -> Iterator[DoorbellWorld]:
    bell = MemoryDoorbell()
    yield DoorbellWorld(bell, lambda: [(job, attempt) for node, job, attempt in bell.rung if node == "here"], list)


@contextmanager
def celery_world() -> Iterator[DoorbellWorld]:
    with valkey(durable=False) as server, server.client() as client:
        command = [sys.executable, "-m", "tests.contract.doorbell_worker", server.unix_url, "here"]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        heard: Heard = []
        ear = threading.Thread(target=_listen, args=(worker, heard), daemon=True)
        ear.start()
        bell = doorbell.connect(server.unix_url)
        try:
            yield DoorbellWorld(bell, lambda: list(heard), client.flushall)
        finally:
            bell.close()
            worker.terminate()
            worker.wait(20)


def _listen(worker: subprocess.Popen[str], heard: Heard) -> None:
    assert worker.stdout is not None
    for line in worker.stdout:  # Celery's banner among them
        if line.startswith("heard "):
            _, job_id, attempt = line.split()
            heard.append((job_id, int(attempt)))


WORLDS: dict[str, Callable[[], AbstractContextManager[DoorbellWorld]]] = {
    "memory": memory_world,
    "celery": celery_world,
}


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest) -> Iterator[DoorbellWorld]:
    with WORLDS[request.param]() as world:
        yield world


def test_a_node_hears_its_own_bell_and_no_other(world: DoorbellWorld) -> None:
    world.bell.ring("elsewhere", "not-mine", 1)
    world.bell.ring("here", "job-1", 1)
    world.bell.ring("here", "job-1", 2)
    eventually(lambda: world.heard()[-2:] == [("job-1", 1), ("job-1", 2)], 40)
    assert "not-mine" not in dict(world.heard())


def test_a_bell_rings_again_after_a_flush(world: DoorbellWorld) -> None:
    world.flush()
    world.bell.ring("here", "after-flush", 1)
    eventually(lambda: ("after-flush", 1) in world.heard())


def test_ringing_a_dead_server_neither_blocks_nor_raises_and_is_bounded() -> None:
    bell = CeleryDoorbell("unix:///tmp/no-such-socket")
    for attempt in range(2 * WAITING_RINGS):
        bell.ring("here", "job", attempt)
    eventually(lambda: bell.dropped)
    bell.close()
    bell.ring("here", "job", 0)


def test_a_bell_that_never_rang_closes() -> None:
    CeleryDoorbell("unix:///tmp/no-such-socket").close()


def test_celery_gets_the_address_in_its_own_form() -> None:
    assert broker_url("unix:///run/llmos/r.sock") == "redis+socket:///run/llmos/r.sock?virtual_host=0"
    assert broker_url("unix:///r.sock?db=3") == "redis+socket:///r.sock?virtual_host=3"
    assert broker_url("redis://cache:6379/0") == "redis://cache:6379/0"


@pytest.mark.parametrize("url", ["", "ftp://x", "amqp://x"])
def test_an_address_of_another_kind_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(SettingsError, match="names no server for doorbells"):
        doorbell.connect(url)
