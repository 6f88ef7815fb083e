"""The scheduler over a bus, with a real database, among fakes that speak the contracts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.bus.memory import MemoryBus, MemoryServer
from shared.contracts.jobs import CancelJob, PauseJob, ResumeJob, Wish
from tests.integration.scheduler_world import World
from tests.waiting import eventually


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    server = MemoryServer()
    world = World(tmp_path, lambda: MemoryBus(server))
    yield world
    world.close()


def test_a_job_goes_from_submit_to_its_artifact(world: World) -> None:
    world.start_scheduler()
    registry = world.registry()
    world.trainer(finish=True)
    job = world.submit()
    state = world.until(job, "succeeded")
    assert [pin.name for pin in state.outputs] == [state.spec.output]
    assert len(registry.made) == 1
    assert ("n1", job, 1) in world.doorbell.rung
    eventually(lambda: world.desired(job) is None)
