"""Traces cost nothing while they are off, and nobody waits for a collector while they are on."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from shared import tracing
from shared.settings import Settings, SettingsError, load_settings
from shared.tracing import Span, span
from tests.collector import Collector, collecting
from tests.ports import free_port

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
UNSAMPLED = f"00-{TRACE}-00f067aa0ba902b7-00"

WORK = """
    from shared.settings import load_settings
    from shared.telemetry import setup_telemetry
    from shared.tracing import span
    setup_telemetry(load_settings(), "tester")
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Code in a process of its own, whose end sends what waits."""
    program = textwrap.dedent(WORK) + textwrap.dedent(code)
    environment = {**os.environ, "LLMOS_LOG_FORMAT": "json", **environment}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True
    )


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def test_without_a_collector_nothing_is_recorded_and_a_clients_trace_goes_on() -> None:
    tracing.start_tracing(Settings(), "tester")
    with span("work", PARENT, kind="server", begins=True, job_id="job_1") as work:
        work.set(attempt=1)
        work.fail("it did")
    assert type(work) is Span
    assert work.traceparent == PARENT
    assert span("work", None, begins=True).traceparent is None


def test_without_a_collector_no_service_imports_opentelemetry() -> None:
    code = """
    import importlib, sys
    for name in ("gateway", "scheduler", "registry", "trainer", "inference", "inference.replica"):
        importlib.import_module(f"services.{name}.main")
    span("work", None, begins=True).end()
    assert not [name for name in sys.modules if name.startswith("opentelemetry")]
    """
    run(code)


def test_spans_arrive_below_their_parent_with_what_was_said_about_them(collector: Collector) -> None:
    code = f"""
    with span("outer", "{PARENT}", kind="server", job_id="job_1", replica=None) as outer:
        with span("inner", outer.traceparent, attempt=2) as inner:
            inner.set(**{{"http.route": "/v1/jobs"}})
        inner.fail("too late to say so")
        outer.rename("renamed")
    """
    run(code, LLMOS_TRACES_URL=collector.url)
    inner, outer = collector.spans
    assert collector.posts == ["/v1/traces"]
    assert (outer.service, outer.name, outer.trace_id, outer.parent_id) == (
        "tester",
        "renamed",
        TRACE,
        "00f067aa0ba902b7",
    )
    assert (inner.name, inner.trace_id, inner.parent_id) == ("inner", TRACE, outer.span_id)
    assert (dict(outer.attributes), dict(inner.attributes)) == (
        {"llmos.job_id": "job_1"},
        {"llmos.attempt": 2, "http.route": "/v1/jobs"},
    )
    assert not inner.failed


def test_a_failure_marks_the_span_and_goes_on(collector: Collector) -> None:
    code = f"""
    try:
        with span("work", "{PARENT}"):
            raise ValueError("no such model")
    except ValueError:
        pass
    else:
        raise AssertionError
    """
    run(code, LLMOS_TRACES_URL=collector.url)
    (work,) = collector.spans
    assert (work.failed, work.reason) == (True, "no such model")


def test_a_trace_begins_only_where_it_may_and_no_garbage_is_carried_on(collector: Collector) -> None:
    code = """
    span("in the middle", None).end()
    begun = span("begun", "garbage", begins=True)
    begun.end()
    assert begun.traceparent != "garbage"
    """
    run(code, LLMOS_TRACES_URL=collector.url)
    assert [work.name for work in collector.spans] == ["begun"]


def test_a_request_that_is_not_sampled_is_recorded_nowhere(collector: Collector) -> None:
    code = f"""
    SAMPLED = 1
    work = span("work", "{UNSAMPLED}", begins=True)
    work.end()
    assert work.traceparent.startswith("00-{TRACE}-")
    own = span("own", None, begins=True)
    own.end()
    assert not any(int(each.traceparent[-2:], 16) & SAMPLED for each in (work, own))
    """
    run(code, LLMOS_TRACES_URL=collector.url, LLMOS_TRACES_RATIO="0")
    assert collector.spans == []


def test_a_collector_that_is_away_costs_one_line_and_no_failure() -> None:
    code = f"""
    from shared import tracing
    for _ in range(3):
        span("work", "{PARENT}").end()
        tracing._recorder._provider.force_flush()
    span("the last", "{PARENT}").end()
    """
    done = run(code, LLMOS_TRACES_URL=f"http://127.0.0.1:{free_port()}")
    (line,) = done.stderr.splitlines()
    assert "traces_are_lost" in line


def test_an_address_that_is_none_is_refused_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_TRACES_URL", "collector:4317")
    with pytest.raises(SettingsError, match="LLMOS_TRACES_URL"):
        load_settings()


def test_without_the_library_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shared.opentelemetry", None)
    with pytest.raises(SettingsError, match=r"llm-os\[traces\]"):
        tracing.start_tracing(Settings(traces_url="http://collector:4318"), "tester")
