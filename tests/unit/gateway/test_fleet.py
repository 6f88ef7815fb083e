"""What the gateway shows of replicas is what they say, as long as they speak."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from services.gateway.answers.deployments import deployment
from services.gateway.view import fleet
from services.gateway.view.deployments import Deployment
from services.gateway.view.fleet import Fleet
from shared.bus.port import Position, Record
from shared.contracts.artifacts import ArtifactKind, ArtifactPin
from shared.contracts.deployments import DeploymentSpec, DesiredDeployment, ReplicaPlace, ReplicaState, ReplicaStatus
from shared.contracts.topics import DEPLOYMENTS_STATUS


def status_said(state: ReplicaState, replica: str) -> ReplicaStatus:
    return ReplicaStatus(replica_id=replica, deployment="chat", node="n1", state=state)


def said(state: ReplicaState, replica: str = "r1") -> Record:
    return Record(DEPLOYMENTS_STATUS, replica, Position(0, 1), status_said(state, replica))


def test_a_ready_replica_that_fell_silent_is_not_shown_as_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Fleet()
    known.on_replica(said(ReplicaState.ready))
    assert [one.state for one in known.replicas("default", "chat")] == [ReplicaState.ready]
    monkeypatch.setattr(fleet, "SILENT_AFTER_S", 0.0)
    (silent,) = known.replicas("default", "chat")
    assert silent.state is ReplicaState.failed
    assert "heard" in silent.reason


def test_one_that_loads_need_not_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "SILENT_AFTER_S", 0.0)
    known = Fleet()
    known.on_replica(said(ReplicaState.loading))
    assert [one.state for one in known.replicas("default", "chat")] == [ReplicaState.loading]
    assert known.replicas("default", "other") == []


def test_the_last_words_of_a_replica_without_a_seat_are_not_the_deployments() -> None:
    spec = DeploymentSpec(model=ArtifactPin(name="m", version=1, kind=ArtifactKind.model, manifest_key="k"))
    seats = [ReplicaPlace(replica_id="r2", node="n2")]
    desired = DesiredDeployment(name="chat", version=2, spec=spec, replicas=seats)
    found = Deployment("default", "chat", datetime.now(UTC), None, desired, deleting=False)
    replicas = [status_said(ReplicaState.failed, "r1"), status_said(ReplicaState.loading, "r2")]
    shown = deployment(found, replicas)
    assert shown["status"] == "starting"
    assert shown["problem"] == ""
    assert [one["id"] for one in shown["replica_statuses"]] == ["r2"]
    answers_still = [status_said(ReplicaState.ready, "r1"), replicas[1]]
    assert deployment(found, answers_still)["ready_replicas"] == 1
