"""What the gateway opened it closes: nothing that reads or writes outlives what it uses."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import event

from services.gateway.inference import InferenceGateway
from services.gateway.inference.service import FOLLOWED
from services.gateway.main import DID_NOT_START, create_app
from shared.bus.memory import MemoryBus
from shared.bus.port import WIPE_PATIENCE_S, Record, Subscription
from shared.contracts.topics import Topic
from shared.db import open_database
from shared.replies.memory import MemoryReplyHub
from shared.requests.memory import MemoryRequests
from shared.settings import Settings
from shared.store.local import LocalStore
from tests.service_process import clean_environment


class WatchedBus(MemoryBus):
    def __init__(self, closed: list[str]) -> None:
        super().__init__()
        self._closed_then = closed

    def close(self) -> None:
        self._closed_then.append("bus")
        super().close()


async def test_the_end_closes_the_bus_and_then_the_database(tmp_path: Path) -> None:
    closed: list[str] = []
    engine = open_database(f"sqlite:///{tmp_path}/gateway.sqlite")
    event.listen(engine, "engine_disposed", lambda _: closed.append("database"))
    settings, store = Settings(home=tmp_path), LocalStore(tmp_path / "objects")
    app = create_app(settings, WatchedBus(closed), store, MemoryRequests(), MemoryReplyHub().replies(), engine)
    async with app.router.lifespan_context(app):
        assert closed == []
    assert closed == ["bus", "database"]


class Meeting:
    """A subscription that closes as soon as all the others do."""

    def __init__(self, met: threading.Barrier) -> None:
        self._met = met

    def close(self) -> None:
        self._met.wait()


class MeetingBus(MemoryBus):
    def __init__(self) -> None:
        super().__init__()
        self._met = threading.Barrier(len(FOLLOWED), timeout=10)

    def follow(
        self,
        topic: Topic,
        on: Callable[[Record], None],
        caught_up: Callable[[], None] | None = None,
        *,
        patience_s: float = WIPE_PATIENCE_S,
    ) -> Subscription:
        return Meeting(self._met)


async def test_what_routing_reads_from_is_closed_at_once() -> None:
    routing = InferenceGateway(Settings(), MeetingBus(), MemoryRequests(), MemoryReplyHub().replies())
    await routing.start()
    await routing.stop()


FAILS = """
from services.gateway import main
def fails(self): raise RuntimeError("the view is broken")
main.View.start = fails
main.main()
"""


@pytest.mark.parametrize(
    ("starts", "why"),
    [
        (["-m", "services.gateway"], "address already in use"),
        (["-c", FAILS], "the view is broken"),
    ],
)
def test_a_start_that_fails_ends_with_its_own_exit_code_and_why(starts: list[str], why: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = {"HOST": "127.0.0.1", "PORT": str(taken.getsockname()[1]), "BUS_URL": "memory://"}
        settings |= {"HOME": str(tmp_path), "REDIS_URL": f"unix://{tmp_path}/none", "REQUESTS_URL": "memory://"}
        environment = {**clean_environment(), **{f"LLMOS_{name}": value for name, value in settings.items()}}
        ended = subprocess.run(
            [sys.executable, *starts], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    assert ended.returncode == DID_NOT_START
    assert why in ended.stdout + ended.stderr
