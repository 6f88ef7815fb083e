"""A bus that lost everything takes nothing from a gateway: it waits for what the scheduler says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import delete

from services.gateway.errors import NotFound
from services.gateway.submissions import Submissions
from services.gateway.view import View
from services.scheduler import tables as truth
from shared.contracts.jobs import JobTransitioned
from shared.db import migrate, open_database
from shared.settings import Settings
from tests.ground import Ground
from tests.integration.scheduler_world import World
from tests.waiting import eventually


@contextmanager
def gateway(ground: Ground, db_url: str) -> Iterator[View]:
    """A gateway's view, caught up."""
    engine, bus = open_database(db_url), ground.bus()
    migrate(engine, "services.gateway.migrations")
    view = View(engine, bus, Submissions(engine, bus, Settings()))
    view.start()
    try:
        eventually(lambda: view.ready() is None, 30)
        yield view
    finally:
        view.stop()
        bus.close()
        engine.dispose()


def history(view: View, job_id: str) -> list[str]:
    """The statuses that readers see the job go through; none where it is unknown."""
    try:
        state = view.jobs.get("default", job_id)
    except NotFound:
        return []
    return [record.body["after"] for record in view.records.told(state, [JobTransitioned.__name__])]


@pytest.mark.timeout(180)
def test_a_gateway_keeps_its_jobs_on_a_wiped_bus_until_the_scheduler_says_which_are_gone(
    tmp_path: Path, ground: Ground
) -> None:
    db_url, view_url = ground.new_database("scheduler"), ground.new_database("gateway")
    world = World(tmp_path, ground.bus, db_url=db_url)
    service = world.start_scheduler()
    world.registry()
    world.trainer(finish=True)
    kept, purged = world.submit(), world.submit()
    for job in (kept, purged):
        world.until(job, "succeeded")
    with gateway(ground, view_url) as view:
        before = eventually(lambda: seen if (seen := history(view, kept))[-1:] == ["succeeded"] else None)
        eventually(lambda: history(view, purged) == before)
    with service.truth.writing() as sql:
        sql.execute(delete(truth.jobs).where(truth.jobs.c.id == purged))
    world.close()
    ground.wipe_bus()

    with gateway(ground, view_url) as view:
        assert history(view, kept) == history(view, purged) == before
        again = World(tmp_path, ground.bus, db_url=db_url)
        service = again.start_scheduler()
        again.until(kept, "succeeded")

        def purged_is_gone() -> bool:
            service.monitor.compare()  # as it does once a minute
            return not history(view, purged)

        eventually(purged_is_gone, 30)
        assert history(view, kept) == before
        again.registry()
        again.trainer(finish=True)
        new = again.submit()
        again.until(new, "succeeded")
        eventually(lambda: history(view, new) == before)
        assert history(view, kept) == before
        again.close()
