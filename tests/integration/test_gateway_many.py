"""Several gateways on one PostgreSQL: what one client asks of two of them is done once, and in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from services.gateway import submissions as accepting_module
from services.gateway.submissions import Asked, Order, Submissions
from services.gateway.tables import submissions
from shared.bus.port import Bus
from shared.contracts.artifacts import ArtifactKind, SetAlias
from shared.contracts.jobs import CancelJob, JobStatus
from shared.contracts.topics import JOBS_COMMANDS, REGISTRY_COMMANDS
from shared.db import open_database
from shared.settings import Settings
from tests.databases import maker
from tests.ground import Ground
from tests.integration.gateway_world import GatewayWorld
from tests.postgres_server import PostgresServer
from tests.waiting import eventually


@pytest.fixture
def db_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return maker("postgresql", request, tmp_path)("gateway")


@pytest.fixture
def bus(ground: Ground) -> Bus:
    return ground.bus()


@pytest.fixture
def engines(db_url: str) -> Iterator[list[Engine]]:
    engines = [open_database(db_url) for _ in range(2)]
    yield engines
    for engine in engines:
        engine.dispose()


@pytest.fixture
def gateways(engines: list[Engine], bus: Bus) -> list[Submissions]:
    return [Submissions(engine, bus, Settings()) for engine in engines]


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def cancel(job_id: str) -> Order:
    return Order(JOBS_COMMANDS, job_id, job_id, CancelJob(job_id=job_id), until="published")


def alias(version: int) -> Order:
    command = SetAlias(name="base", alias="production", version=version)
    return Order(REGISTRY_COMMANDS, "default/base", "base", command, until="answered")


def test_a_retry_on_one_gateway_joins_its_first_try_on_another_at_the_same_moment(gateways: list[Submissions]) -> None:
    for number in range(20):
        first = Asked("default", "POST /x", f"body {number}")
        retry = replace(first, retried=True)
        accepted = at_once(
            lambda number=number, first=first: gateways[0].accept(first, cancel(f"a{number}")),
            lambda number=number, retry=retry: gateways[1].accept(retry, cancel(f"b{number}")),
        )
        assert len({one.command_id for one in accepted}) == 1, "the second joins the first, whichever that is"


def test_only_one_command_of_a_subject_is_under_way_whichever_gateways_accepted_them(
    gateways: list[Submissions], ground: Ground, engines: list[Engine]
) -> None:
    at_once(
        *(
            lambda number=number: gateways[number % 2].accept(
                Asked("default", "POST /x", f"body {number}"), alias(number)
            )
            for number in range(8)
        )
    )
    assert len(ground.said(REGISTRY_COMMANDS)) == 1
    with engines[0].connect() as sql:
        times = sql.execute(select(submissions.c.created_at)).scalars().all()
    assert len(set(times)) == 8


def test_a_subjects_order_is_that_of_acceptance_though_clocks_differ(
    gateways: list[Submissions], ground: Ground, engines: list[Engine]
) -> None:
    first = gateways[0].accept(Asked("default", "POST /x", "1"), alias(1))
    with engines[0].begin() as sql:
        ahead = datetime.now(UTC) + timedelta(minutes=1)
        sql.execute(update(submissions).values(created_at=ahead))
    second = gateways[1].accept(Asked("default", "POST /x", "2"), alias(2))
    with engines[0].connect() as sql:
        order = sql.execute(select(submissions.c.command_id).order_by(submissions.c.created_at)).scalars().all()
    assert order == [first.command_id, second.command_id]
    assert len(ground.said(REGISTRY_COMMANDS)) == 1


@pytest.mark.parametrize("ground", ["memory"], indirect=True)  # it refuses at once; what hangs may come twice
def test_what_is_due_is_published_by_one_of_the_gateways(
    gateways: list[Submissions], ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting_module, "FIRST_REPEAT", timedelta(0))
    with ground.bus_away():
        for number in range(100):
            gateways[number % 2].accept(Asked("default", "POST /x", str(number)), cancel(f"j{number}"))
    for gateway in gateways:
        gateway.start()
    eventually(lambda: len(ground.said(JOBS_COMMANDS)) >= 100)
    eventually(lambda: all(gateway.outbox.oldest_unpublished() is None for gateway in gateways))
    for gateway in gateways:
        gateway.stop()
    counted = Counter(message.job_id for message in ground.said(JOBS_COMMANDS) if isinstance(message, CancelJob))
    assert set(counted.values()) == {1}


def test_two_gateways_that_write_the_same_rows_never_wait_for_each_other(
    tmp_path: Path, ground: Ground, db_url: str, postgres: PostgresServer
) -> None:
    """PostgreSQL would end one of the two, and say so in its log."""
    said_before = len(postgres.log())
    world = GatewayWorld(tmp_path, ground, db_url=db_url)
    with world.gateway() as one, world.gateway() as other:
        world.registry.put("base", ArtifactKind.model, {"a.safetensors": b"w"})
        eventually(lambda: one.http.get("/v1/artifacts/base").status_code == 200)

        def ask(number: int) -> None:
            here = (one, other)[number % 2]
            job_id = here.submit(name=f"job {number}", labels={"a": "1", "b": "2"})
            assert here.http.put("/v1/artifacts/base/aliases/production", json={"version": 1}).status_code < 300
            deployment = {"model": "base", "name": f"d{number % 3}", "replicas": number % 4}
            assert here.http.post("/v1/deployments", json=deployment).status_code == 202
            world.scheduler.move(job_id, JobStatus.cancelled)

        at_once(*(lambda number=number: ask(number) for number in range(40)))
        eventually(lambda: one.http.get("/v1/jobs", params={"status": "queued"}).json()["data"] == [], 30)
    world.close()
    assert "deadlock" not in postgres.log()[said_before:]
