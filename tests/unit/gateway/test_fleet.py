"""What the gateway shows of replicas is what they say, as long as they and their nodes speak."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from services.gateway.answers.deployments import deployment
from services.gateway.view import fleet
from services.gateway.view.deployments import Deployment
from services.gateway.view.fleet import SILENT_AFTER_S, Fleet
from shared.bus.port import Position, Record
from shared.contracts.artifacts import ArtifactKind, ArtifactPin
from shared.contracts.deployments import (
    DeploymentSpec,
    DesiredDeployment,
    ReplicaFailure,
    ReplicaPlace,
    ReplicaState,
    ReplicaStatus,
)
from shared.contracts.nodes import Capacity, NodeHeartbeat, Role, node_key
from shared.contracts.topics import DEPLOYMENTS_STATUS, NODES_HEARTBEATS

NOW = datetime.now(UTC)
SPEC = DeploymentSpec(model=ArtifactPin(name="m", version=1, kind=ArtifactKind.model, manifest_key="k"))


class Seen:
    """A fleet whose clock the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed_s = 1000.0
        monkeypatch.setattr(fleet, "time", SimpleNamespace(monotonic=lambda: self.passed_s))
        self.fleet = Fleet()

    def says(self, state: ReplicaState, at: datetime | None = None) -> None:
        status = status_said(state, "r1").changed(at=at or datetime.now(UTC))
        self.fleet.on_replica(Record(DEPLOYMENTS_STATUS, "r1", Position(0, 1), status))

    def beats(self, at: datetime | None = None) -> None:
        at = at or datetime.now(UTC)
        capacity = Capacity(cpus=1, memory_bytes=1)
        beat = NodeHeartbeat(node="n1", role=Role.inference, boot_id="b", capacity=capacity, at=at)
        self.fleet.on_heartbeat(Record(NODES_HEARTBEATS, node_key("n1", Role.inference), Position(0, 1), beat))

    def shown(self) -> ReplicaStatus:
        (shown,) = self.fleet.replicas("default", "chat")
        return shown


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return Seen(monkeypatch)


def status_said(state: ReplicaState, replica: str) -> ReplicaStatus:
    return ReplicaStatus(replica_id=replica, deployment="chat", node="n1", state=state)


def found(wanted: DeploymentSpec | None = None, **desired: Any) -> Deployment:
    seats = [ReplicaPlace(replica_id=replica, node="n2") for replica in desired.pop("seats", ())]
    made = DesiredDeployment(name="chat", version=2, spec=SPEC, replicas=seats, **desired)
    return Deployment("default", "chat", NOW, wanted, made, deleting=False)


def failure(replica: str = "r1", reason: str = "no memory") -> ReplicaFailure:
    return ReplicaFailure(replica_id=replica, node="n1", reason=reason, at=NOW)


def test_a_ready_replica_that_fell_silent_is_not_shown_as_ready(seen: Seen) -> None:
    seen.says(ReplicaState.ready)
    assert seen.shown().state is ReplicaState.ready
    seen.passed_s += SILENT_AFTER_S
    seen.beats()
    assert seen.shown().state is ReplicaState.failed
    assert "nothing was heard of it" in seen.shown().reason


def test_one_that_loads_need_not_speak_while_its_node_does(seen: Seen) -> None:
    seen.says(ReplicaState.loading)
    seen.passed_s += SILENT_AFTER_S
    seen.beats()
    assert seen.shown().state is ReplicaState.loading
    assert seen.fleet.replicas("default", "other") == []


@pytest.mark.parametrize("state", [ReplicaState.loading, ReplicaState.ready, ReplicaState.draining])
def test_nothing_goes_on_at_a_node_that_does_not_answer(seen: Seen, state: ReplicaState) -> None:
    seen.beats()
    seen.says(state)
    seen.passed_s += SILENT_AFTER_S
    assert (seen.shown().state, seen.shown().reason) == (ReplicaState.failed, "its node n1 does not answer")


def test_the_words_of_a_machine_that_died_before_the_gateway_started_are_old(seen: Seen) -> None:
    long_ago = datetime.now(UTC) - timedelta(seconds=2 * SILENT_AFTER_S)
    seen.beats(at=long_ago)
    seen.says(ReplicaState.ready, at=long_ago)
    assert seen.shown().state is ReplicaState.failed
    for topic in (DEPLOYMENTS_STATUS, NODES_HEARTBEATS):
        seen.fleet.all_shown(topic)
    seen.says(ReplicaState.ready, at=long_ago)  # said now, by a clock that goes wrong
    assert seen.shown().state is ReplicaState.ready


def test_the_last_words_of_a_replica_without_a_seat_are_not_the_deployments() -> None:
    replicas = [status_said(ReplicaState.failed, "r1"), status_said(ReplicaState.loading, "r2")]
    shown = deployment(found(seats=["r2"]), replicas)
    assert shown["status"] == "starting"
    assert shown["problem"] == ""
    assert [one["id"] for one in shown["replica_statuses"]] == ["r2"]
    answers_still = [status_said(ReplicaState.ready, "r1"), replicas[1]]
    assert deployment(found(seats=["r2"]), answers_still)["ready_replicas"] == 1


def test_a_deployment_whose_replica_was_given_up_has_failed_and_says_why() -> None:
    shown = deployment(found(failures=[failure()], problem="failed on n1: no memory"), [])
    assert (shown["status"], shown["problem"]) == ("failed", "failed on n1: no memory")
    assert [(one["id"], one["node"], one["state"], one["reason"]) for one in shown["replica_statuses"]] == [
        ("r1", "n1", "failed", "no memory")
    ]


def test_a_deployment_has_not_failed_while_the_scheduler_may_try_another_node() -> None:
    given_up = [status_said(ReplicaState.failed, "r1").changed(reason="no memory")]
    shown = deployment(found(seats=["r1"]), given_up)
    assert (shown["status"], shown["problem"]) == ("starting", "no memory")
    elsewhere = deployment(found(seats=["r2"], failures=[failure()]), [status_said(ReplicaState.loading, "r2")])
    assert (elsewhere["status"], elsewhere["problem"]) == ("starting", "no memory")


def test_a_deployment_whose_replica_starts_again_says_why() -> None:
    again = [status_said(ReplicaState.loading, "r1").changed(reason="started again after it failed: no such kernel")]
    shown = deployment(found(seats=["r1"]), again)
    assert (shown["status"], shown["problem"]) == ("starting", "started again after it failed: no such kernel")


def test_a_deployment_that_is_whole_again_does_not_speak_of_old_failures() -> None:
    shown = deployment(found(seats=["r2"], failures=[failure()]), [status_said(ReplicaState.ready, "r2")])
    assert (shown["status"], shown["problem"], len(shown["replica_statuses"])) == ("ready", "", 1)


def test_a_deployment_that_was_asked_for_again_has_not_failed_yet() -> None:
    shown = deployment(found(wanted=SPEC, failures=[failure()], problem="failed on n1: no memory"), [])
    assert shown["status"] == "starting"
