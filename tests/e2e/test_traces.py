"""One trace from a POST to the last that happens because of it, through every process on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from llmos.client import LLMOS
from tests.collector import Collector, Seen, collecting
from tests.e2e.systems import SHAPES, new_system
from tests.tiny_model import make_tiny_llama
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(300)

CLIENT_SPAN = "00f067aa0ba902b7"
FAILS_ONCE = {"steps": 4, "checkpoint_every": 2, "fail_at_step": 3, "fail_attempts": 1, "fail_with": "crash"}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module", params=SHAPES)
def client(request: pytest.FixtureRequest, collector: Collector) -> Iterator[LLMOS]:
    """Of a whole system that sends its traces to the collector."""
    with new_system(request.param, {"LLMOS_TRACES_URL": collector.url}) as system, system.client() as client:
        yield client


def find(spans: Sequence[Seen], service: str, name: str, **about: Any) -> list[Seen]:
    wanted = [span for span in spans if (span.service, span.name) == (service, name)]
    return [span for span in wanted if all(span[key] == value for key, value in about.items())]


def root_of(spans: Sequence[Seen], parent: str = "") -> Seen:
    """The one span below `parent`; every other one hangs on a span that is there."""
    known = {span.span_id for span in spans}
    (root,) = [span for span in spans if span.parent_id not in known]
    assert root.parent_id == parent
    return root


def test_a_job_is_one_trace_from_its_post_through_a_retry_to_its_end(client: LLMOS, collector: Collector) -> None:
    job = client.submit_job("probe", params=FAILS_ONCE, output="traced")
    assert client.wait_job(job["id"])["status"] == "succeeded"
    about = {"job_id": job["id"]}
    (accepted,) = eventually(
        lambda: find(collector.spans, "gateway", "accept SubmitJob", resource=job["id"]), 20, "the POST's trace"
    )

    def whole() -> list[Seen]:
        """The trace, once the last of every process has come."""
        spans = collector.trace(accepted.trace_id)
        last = (
            find(spans, "gateway", "POST /v1/jobs")
            and find(spans, "trainer", "attempt", attempt=2)
            and find(spans, "registry", "PublishArtifact", **about)
            and find(spans, "scheduler", "CommandDone", status="succeeded", **about)
        )
        return spans if last else []

    spans = eventually(whole, 20, "the whole trace")
    assert root_of(spans) == find(spans, "gateway", "POST /v1/jobs")[0]
    assert [step["attempt"] for step in find(spans, "scheduler", "Dispatch", **about)] == [1, 2]
    for name in ("SubmitJob", "AttemptStarted", "CheckpointSaved", "AttemptFailed", "BackoffOver", "AttemptSucceeded"):
        assert find(spans, "scheduler", name, **about), name
    attempts = find(spans, "trainer", "attempt", **about)
    assert [(each["attempt"], each.failed) for each in attempts] == [(1, True), (2, False)]
    assert "the probe crashed" in attempts[0].reason
    for name in ("pull inputs", "recipe probe", "upload checkpoint", "upload outputs"):
        assert {part.parent_id for part in find(spans, "trainer", name)} <= {each.span_id for each in attempts}, name
        assert find(spans, "trainer", name), name
    (published,) = find(spans, "registry", "PublishArtifact", **about)
    (last,) = find(spans, "scheduler", "CommandDone", **about)
    assert last.parent_id == published.span_id


def test_a_chat_request_is_one_trace_through_the_replica_and_back(
    client: LLMOS, collector: Collector, tmp_path: Path
) -> None:
    trace = uuid4().hex
    make_tiny_llama(tmp_path / "tiny")
    job = client.submit_job("import", params={"source": str(tmp_path / "tiny")}, output="tiny")
    assert client.wait_job(job["id"])["status"] == "succeeded"
    client.deploy("tiny", name="echoes", engine="echo")
    eventually(lambda: client.get_deployment("echoes")["status"] == "ready", 60, "it answers")
    answer = httpx.post(
        f"{client.connection.url}/v1/chat/completions",
        json={"model": "echoes", "messages": [{"role": "user", "content": "hello"}]},
        headers={**client.connection.headers, "traceparent": f"00-{trace}-{CLIENT_SPAN}-01"},
        timeout=30,
    )
    assert answer.status_code == 200
    eventually(lambda: len(collector.trace(trace)) == 4, 20, "both have sent")
    spans = collector.trace(trace)
    post = root_of(spans, CLIENT_SPAN)
    (answered,) = find(spans, "gateway", "answer", request_id=answer.headers["x-request-id"])
    (asked,) = find(spans, "gateway", "until the first frame")
    (engine,) = find(spans, "replica", "POST /v1/chat/completions")
    assert (post.name, post.attributes["http.response.status_code"]) == ("POST /v1/chat/completions", 200)
    assert (answered.parent_id, asked.parent_id, engine.parent_id) == (post.span_id, answered.span_id, asked.span_id)
    assert (asked["model"], asked["replica"], asked["attempt"]) == ("tiny@1", engine["replica"], 1)
    assert engine["request_id"] == answer.headers["x-request-id"]
    assert not any(span.failed for span in spans)
