"""What a run of a gang does when its child has ended before the others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from services.trainer import protocol
from services.trainer.endings import StopOrder
from services.trainer.leftovers import RunFolder
from services.trainer.outbox import Contact
from services.trainer.run import Run
from services.trainer.workplace import Workplace
from shared.bus.memory import MemoryBus
from shared.contracts.jobs import DesiredAttempt, JobSpec, Place, Wish
from shared.contracts.nodes import Capacity
from shared.settings import Settings
from shared.store.cache import ArtifactCache
from shared.store.local import LocalStore
from tests.waiting import eventually


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Rank 1 of two, begun, told to pause, its child gone."""
    store = LocalStore(tmp_path / "objects")
    at = Workplace(
        Settings(home=tmp_path),
        MemoryBus(),
        store,
        ArtifactCache(store, tmp_path / "cache", 1 << 20, 60),
        RunFolder(tmp_path / "runs"),
        Capacity(cpus=1, memory_bytes=1 << 30),
        Contact(),
    )
    places = [Place(node="n1"), Place(node="n2", rank=1)]
    desired = DesiredAttempt(job_id="j", attempt=1, version=1, spec=JobSpec(type="probe"), places=places, wish=Wish.run)
    run = Run(desired, places[1], "run-1", at, lambda: None)
    run._begun, run._said = True, protocol.Halted()
    run.stop(StopOrder(Wish.pause))
    return run


@pytest.mark.parametrize(
    "end",
    [lambda run: run.stop(StopOrder(Wish.none)), lambda run: run.abandon()],
    ids=["the wish is gone", "the trainer ends"],
)
def test_a_paused_rank_rests_until_the_attempt_or_its_trainer_is_over(run: Run, end: Callable[[Run], None]) -> None:
    waiting = threading.Thread(target=run._await_the_others)
    waiting.start()
    eventually(lambda: not run._ordered.is_set(), what="the order is seen once, not all the time")
    assert waiting.is_alive()
    end(run)
    waiting.join(timeout=10)
    assert not waiting.is_alive()
    run.abandon()


def test_a_rank_that_has_not_begun_pauses_at_once(run: Run) -> None:
    run._begun = False
    run._await_the_others()
    run.abandon()
