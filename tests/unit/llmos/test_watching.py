"""Where no bar can move, patience is not taken for a hang."""

from __future__ import annotations

from io import StringIO
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmos.cli import deployments, watching
from llmos.cli.printable import Terminal
from llmos.client import LLMOS
from llmos.errors import APIError

PROGRESS: dict[str, Any] = {"step": 7, "total_steps": 9, "percent": 77.0, "eta_s": None, "metrics": {}}


class Patient:
    """A client whose job and deployment take a hundred looks."""

    def __init__(self) -> None:
        self.looks = 0

    def get_job(self, job_id: str) -> dict[str, Any]:
        self.looks += 1
        status = "succeeded" if self.looks > 100 else "running"
        words = {"id": job_id, "type": "sft", "reason": "", "queue_position": None, "progress": PROGRESS}
        return {**words, "status": status}

    def get_deployment(self, name: str) -> dict[str, Any]:
        self.looks += 1
        loading = {"state": "loading", "percent": 40.0, "reason": "\x1b[2J"}
        status = "ready" if self.looks > 100 else "starting"
        return {"name": name, "status": status, "replica_statuses": [loading], "problem": ""}


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second goes by at every look at the clock."""
    seconds = count()
    clock = SimpleNamespace(monotonic=lambda: float(next(seconds)), sleep=lambda _: None)
    for module in (watching, deployments):
        monkeypatch.setattr(module, "time", clock)


def watched(console: Terminal, quiet: bool = False) -> None:
    watching.watch_job(cast(LLMOS, Patient()), "job-1", quiet=quiet, title="fine-tune", on=console)


def test_a_job_is_told_of_now_and_then_where_there_is_no_terminal() -> None:
    said = StringIO()
    watched(Terminal(file=said))
    lines = said.getvalue().splitlines()
    assert 3 <= len(lines) <= 8
    assert set(lines) == {"fine-tune: running: step 7/9"}


def test_a_job_is_watched_on_while_the_gateway_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    patient, answers = Patient(), [503] * 40

    def away_at_first(job_id: str) -> dict[str, Any]:
        if answers:
            raise APIError("The database does not answer now.", answers.pop(), None, None)
        return Patient.get_job(patient, job_id)

    monkeypatch.setattr(patient, "get_job", away_at_first)
    said = StringIO()
    job = watching.watch_job(cast(LLMOS, patient), "job-1", on=Terminal(file=said))
    assert job["status"] == "succeeded"
    assert "job-1: waits: The database does not answer now." in said.getvalue()
    answers.append(404)
    with pytest.raises(APIError):
        watching.watch_job(cast(LLMOS, patient), "job-1")


def test_a_deployment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    said = StringIO()
    deployments.wait_ready(cast(LLMOS, Patient()), "m", on=Terminal(file=said))
    lines = said.getvalue().splitlines()
    assert 3 <= len(lines) <= 16
    assert set(lines) == {"m: loading 40% (\\x1b[2J)"}


def test_nothing_is_told_to_who_wants_json() -> None:
    said = StringIO()
    watched(Terminal(file=said), quiet=True)
    assert said.getvalue() == ""


def test_on_a_terminal_the_bar_tells_enough() -> None:
    said = StringIO()
    watched(Terminal(file=said, force_terminal=True, width=200))
    assert "fine-tune: running" not in said.getvalue()
