"""`llmos deploy` waits for long, and not for ever."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmos.cli import deployments
from llmos.client import LLMOS
from llmos.errors import LLMOSError


class NeverReady:
    """A client of a system where a replica loads for ever."""

    looks = 0

    def get_deployment(self, name: str) -> dict[str, Any]:
        self.looks += 1
        assert self.looks < 100, "nobody waits so long"
        loading = {"state": "loading", "percent": 40.0, "reason": ""}
        return {"name": name, "status": "loading", "replica_statuses": [loading], "problem": ""}


def test_a_deployment_that_never_gets_ready_is_given_up_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    minutes = count(step=60.0)
    clock = SimpleNamespace(monotonic=lambda: next(minutes), sleep=lambda _: None)
    monkeypatch.setattr(deployments, "time", clock)
    with pytest.raises(LLMOSError, match=r"m is not ready after 1800 s: loading 40%\. .*llmos status.*--timeout"):
        deployments.wait_ready(cast(LLMOS, NeverReady()), "m", quiet=True)


@pytest.mark.parametrize(("replicas", "status"), [([{"state": "ready"}], "stopping"), ([], "stopped")])
def test_a_deployment_is_stopped_when_its_replicas_are(replicas: list[dict[str, str]], status: str) -> None:
    assert deployments.status_of({"status": "stopped", "replica_statuses": replicas}) == status
