"""Native jobs: nothing that was accepted is lost or doubled, and readers see accepted runs only."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.contracts.bookmarks import BOOKMARK, TableBookmark
from shared.contracts.jobs import AttemptStarted, JobStatus, LogLines, Progress
from shared.contracts.topics import JOBS_LOGS, JOBS_STATE
from tests.ground import Ground, MemoryGround
from tests.integration.gateway_world import GatewayWorld, Running
from tests.waiting import eventually


@pytest.fixture
def world(tmp_path: Path, ground: Ground) -> Iterator[GatewayWorld]:
    world = GatewayWorld(tmp_path, ground)
    yield world
    world.close()


@pytest.fixture
def here(world: GatewayWorld) -> Iterator[Running]:
    with world.gateway() as running:
        yield running


def test_a_job_is_shown_from_its_acceptance_to_its_end(world: GatewayWorld, here: Running) -> None:
    job_id = here.submit(name="first", params={"steps": 2}, labels={"team": "a"})
    assert here.job(job_id)["status"] == "queued"
    eventually(lambda: here.job(job_id)["version"] == 1)
    world.scheduler.start(job_id)
    running = eventually(lambda: job if (job := here.job(job_id))["status"] == "running" else None)
    assert running["queue_position"] is None
    words = {"job_id": job_id, "attempt": 1, "run_id": "run-a"}
    world.bus.publish(JOBS_LOGS, job_id, Progress(step=1, total_steps=2, tokens=10, percent=50.0, **words))
    assert eventually(lambda: here.job(job_id)["progress"])["percent"] == 50
    assert here.http.get(f"/v1/jobs/{job_id}/metrics").json()["data"][0]["tokens"] == 10
    world.scheduler.move(job_id, JobStatus.succeeded)
    eventually(lambda: here.job(job_id)["status"] == "succeeded")
    assert [one["id"] for one in listed(here, status="succeeded", label="team=a")] == [job_id]
    assert listed(here, status="queued") == []
    assert listed(here, label="team=b") == []


def listed(here: Running, **params: Any) -> list[dict[str, Any]]:
    answer = here.http.get("/v1/jobs", params=params)
    assert answer.status_code == 200, answer.text
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


def test_lists_page_newest_first(here: Running) -> None:
    made = [here.submit(name=str(number)) for number in range(5)]
    first = here.http.get("/v1/jobs", params={"limit": 3}).json()
    rest = here.http.get("/v1/jobs", params={"limit": 3, "after": first["last_id"]}).json()
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert {one["id"] for one in first["data"] + rest["data"]} == set(made)


def test_the_same_key_and_body_are_one_job_and_another_body_a_conflict(world: GatewayWorld, here: Running) -> None:
    def post(body: dict[str, Any], key: str = "k-1", path: str = "/v1/jobs") -> httpx.Response:
        return here.http.post(path, json=body, headers={"Idempotency-Key": key})

    first = post({"type": "probe", "name": "a"})
    again = post({"name": "a", "type": "probe"})
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert post({"type": "probe", "name": "b"}).status_code == 409
    assert post({"type": "probe", "name": "a"}, "k-2").json()["id"] != first.json()["id"]


def test_one_key_from_many_clients_on_two_gateways_at_once_is_one_job(world: GatewayWorld, here: Running) -> None:
    with world.gateway() as other, ThreadPoolExecutor(8) as clients:
        urls = [gateway.http for gateway in (here, other)] * 8

        def post(http: httpx.Client) -> str:
            answer = http.post("/v1/jobs", json={"type": "probe"}, headers={"Idempotency-Key": "same"})
            assert answer.status_code == 202, answer.text
            return str(answer.json()["id"])

        assert len(set(clients.map(post, urls))) == 1
    assert len({submit.job_id for submit in world.scheduler.submits}) == 1


def test_an_sdks_own_retry_joins_the_first_try(here: Running) -> None:
    def post(retries: int) -> str:
        headers = {"x-stainless-retry-count": str(retries)}
        return str(here.http.post("/v1/jobs", json={"type": "probe", "name": "x"}, headers=headers).json()["id"])

    first = post(0)
    assert post(1) == first
    assert post(0) != first


def test_a_202_survives_a_bus_that_is_away_and_a_gateway_that_dies(world: GatewayWorld, ground: Ground) -> None:
    with ground.bus_away():
        with world.gateway(ready=False) as gateway:
            job_id = gateway.submit(name="kept")
            cancelled = gateway.submit(name="cancelled")
            assert gateway.http.post(f"/v1/jobs/{cancelled}/cancel").status_code == 202
        assert world.scheduler.submits == []
    with world.gateway() as gateway:
        assert gateway.job(job_id)["status"] == "queued"
        eventually(lambda: gateway.job(job_id)["version"] == 1)
        eventually(lambda: [one.job_id for one in world.scheduler.steered] == [cancelled])  # type: ignore[attr-defined]
        assert job_id in world.scheduler.jobs


def test_past_the_limit_of_unpublished_jobs_comes_503(tmp_path: Path, ground: Ground) -> None:
    world = GatewayWorld(tmp_path, ground, max_unpublished=2)
    with ExitStack() as until_it_is_back:
        until_it_is_back.enter_context(ground.bus_away())
        with world.gateway(ready=False) as gateway:
            statuses = [gateway.http.post("/v1/jobs", json={"type": "probe"}).status_code for _ in range(3)]
            assert statuses == [202, 202, 503]
            refused = gateway.http.post("/v1/jobs", json={"type": "probe"})
            assert refused.headers["retry-after"]
            assert gateway.http.get("/readyz").json()["missing"]["bus"]
            until_it_is_back.close()
            eventually(lambda: gateway.http.post("/v1/jobs", json={"type": "probe"}).status_code == 202)


def test_a_tenant_has_a_limit_of_unfinished_jobs(tmp_path: Path, ground: Ground) -> None:
    world = GatewayWorld(tmp_path, ground, max_queued_jobs=1)
    with world.gateway() as gateway:
        gateway.submit()
        refused = gateway.http.post("/v1/jobs", json={"type": "probe"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_jobs")
    world.close()


def test_late_and_doubled_states_change_nothing(world: GatewayWorld, here: Running) -> None:
    job_id = here.submit()
    old = eventually(lambda: world.scheduler.jobs.get(job_id))
    world.scheduler.move(job_id, JobStatus.succeeded)
    eventually(lambda: here.job(job_id)["status"] == "succeeded")
    marker = here.submit()
    world.bus.publish(JOBS_STATE, job_id, old)
    eventually(lambda: here.job(marker)["version"] == 1)
    assert here.job(job_id)["status"] == "succeeded"


def test_jobs_purged_while_no_gateway_ran_are_gone(world: GatewayWorld) -> None:
    with world.gateway() as gateway:
        gone, kept = gateway.submit(), gateway.submit()
        eventually(lambda: gateway.job(kept)["version"] == 1)
        eventually(lambda: gateway.job(gone)["version"] == 1)
    world.bus.publish(JOBS_STATE, gone, None)
    began, minute = datetime.now(UTC), timedelta(minutes=1)
    before = TableBookmark(complete_since=began - minute, complete_until=began)
    world.bus.publish(JOBS_STATE, BOOKMARK, before).result()
    with world.gateway() as gateway:
        assert gateway.job(gone)["version"] == 1  # which the topic may have lost: the scheduler looks again
        after = TableBookmark(complete_since=began - minute, complete_until=datetime.now(UTC))
        world.bus.publish(JOBS_STATE, BOOKMARK, after).result()
        eventually(lambda: gateway.http.get(f"/v1/jobs/{gone}").status_code == 404)
        assert gateway.job(kept)["version"] == 1


def test_readers_see_accepted_runs_only_and_miss_nothing(world: GatewayWorld, here: Running) -> None:
    job_id = here.submit()
    eventually(lambda: job_id in world.scheduler.jobs)
    for run in ("run-b", "run-a"):
        world.scheduler.say(AttemptStarted(job_id=job_id, attempt=1, run_id=run, node="n", pid=1))
        lines = LogLines(job_id=job_id, attempt=1, run_id=run, lines=[f"of {run}"])
        world.bus.publish(JOBS_LOGS, job_id, lines)
    # Neither is decided yet, and what comes later must not overtake them.
    assert here.http.get(f"/v1/jobs/{job_id}/events").json()["data"] == []
    world.scheduler.start(job_id, "run-a")
    events = eventually(lambda: one if len(one := told(here, job_id)) == 2 else None)
    assert [(one["type"], one["data"].get("run_id")) for one in events] == [
        ("AttemptStarted", "run-a"),
        ("JobTransitioned", None),
    ]
    logs = here.http.get(f"/v1/jobs/{job_id}/logs").json()["data"]
    assert [one["data"]["lines"] for one in logs] == [["of run-a"]]


def told(here: Running, job_id: str) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = here.http.get(f"/v1/jobs/{job_id}/events").json()["data"]
    return data


def test_a_stream_goes_on_where_it_broke_off_on_another_gateway(world: GatewayWorld, here: Running) -> None:
    job_id = here.submit()
    eventually(lambda: job_id in world.scheduler.jobs)
    world.scheduler.start(job_id)
    seen: list[dict[str, Any]] = []
    with here.http.stream("GET", f"/v1/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}) as answer:
        seen.append(next(sse(answer)))
    world.scheduler.move(job_id, JobStatus.publishing)
    with world.gateway() as other:
        ended = threading.Timer(0.0, lambda: world.scheduler.move(job_id, JobStatus.succeeded))
        ended.start()
        headers = {"Last-Event-ID": seen[0]["id"]}
        with other.http.stream("GET", f"/v1/jobs/{job_id}/events?stream=true", headers=headers) as answer:
            seen += list(sse(answer))
    assert [one["data"]["after"] for one in seen] == ["running", "publishing", "succeeded"]
    assert len({one["id"] for one in seen}) == 3
    with here.http.stream(
        "GET", f"/v1/jobs/{job_id}/events?stream=true", headers={"Last-Event-ID": seen[-1]["id"]}
    ) as answer:
        assert list(sse(answer)) == []


def sse(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    for line in answer.iter_lines():
        if line.startswith("data:"):
            yield json.loads(line.removeprefix("data:"))


def test_cancel_is_refused_when_it_is_too_late(world: GatewayWorld, here: Running) -> None:
    job_id = here.submit()
    world.scheduler.move(job_id, JobStatus.publishing)
    eventually(lambda: here.job(job_id)["status"] == "publishing")
    refused = here.http.post(f"/v1/jobs/{job_id}/cancel")
    assert refused.status_code == 409
    assert "too late" in refused.json()["error"]["message"]
    assert here.http.post(f"/v1/jobs/{job_id}/retry").status_code == 409


def test_a_retry_is_a_new_job(world: GatewayWorld, here: Running) -> None:
    job_id = here.submit(params={"steps": 9})
    world.scheduler.move(job_id, JobStatus.failed)
    eventually(lambda: here.job(job_id)["status"] == "failed")
    again = here.http.post(f"/v1/jobs/{job_id}/retry", headers={"Idempotency-Key": "r"}).json()
    assert (again["retry_of"], again["status"], again["params"]["steps"]) == (job_id, "queued", 9)
    assert here.http.post(f"/v1/jobs/{job_id}/retry", headers={"Idempotency-Key": "r"}).json()["id"] == again["id"]


def test_inputs_are_pinned_to_versions(world: GatewayWorld, here: Running) -> None:
    file_id = here.upload()
    job_id = here.submit(inputs={"data": file_id})
    assert here.job(job_id)["inputs"] == {"data": f"{file_id}@1"}
    submitted = eventually(lambda: world.scheduler.submits, what="the submit")
    assert submitted[-1].spec.inputs["data"].manifest_key


def test_a_job_too_large_for_the_queue_is_refused_with_the_way_out(here: Running) -> None:
    answer = here.http.post("/v1/jobs", json={"type": "probe", "params": {"log_line": "x" * 2**19}})
    assert answer.status_code == 413
    assert "/v1/files" in answer.json()["error"]["message"]
    assert listed(here) == []


def test_a_gateway_whose_server_for_requests_is_away_is_not_ready_and_says_so(tmp_path: Path) -> None:
    world = GatewayWorld(tmp_path, MemoryGround(tmp_path), requests_url="redis://127.0.0.1:1/0")
    with world.gateway(ready=False) as gateway:
        eventually(lambda: list(gateway.http.get("/readyz").json()["missing"]) == ["requests"])
    world.close()
