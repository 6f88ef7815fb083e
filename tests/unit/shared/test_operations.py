"""What an orchestrator asks a service that has no HTTP of its own."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from shared.operations import serve_operations
from shared.settings import SettingsError
from tests.ports import free_port


class Away(Exception):
    pass


@pytest.fixture
def missing() -> dict[str, str]:
    return {}


@pytest.fixture
def address(missing: dict[str, str]) -> Iterator[str]:
    def bus() -> None:
        if "bus" in missing:
            raise Away(missing["bus"])

    port = free_port()
    stop = serve_operations(port, {"bus": bus})
    yield f"http://127.0.0.1:{port}"
    stop()


def test_it_is_ready_when_all_it_needs_is_there_and_else_says_what_is_not(
    address: str, missing: dict[str, str]
) -> None:
    assert httpx.get(f"{address}/readyz").json() == {"status": "ready", "missing": {}}
    missing["bus"] = "kafka:9092 does not answer\nand more"
    answer = httpx.get(f"{address}/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"status": "not ready", "missing": {"bus": "kafka:9092 does not answer"}}
    assert httpx.get(f"{address}/healthz").status_code == 200


def test_metrics_are_prometheus_and_other_paths_say_what_there_is(address: str) -> None:
    assert "# TYPE python_info gauge" in httpx.get(f"{address}/metrics").text
    assert "/readyz" in httpx.get(f"{address}/nope").json()["error"]["message"]


def test_a_port_of_0_serves_nothing_and_a_taken_one_is_an_error(address: str) -> None:
    serve_operations(0, {})()
    with pytest.raises(SettingsError, match=r"LLMOS_METRICS_PORT.*in use"):
        serve_operations(int(address.rpartition(":")[2]), {})
