"""A model's name becomes an immutable version and the replicas that answer for it, or a sentence that says why not."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from services.gateway.inference.errors import InferenceError, ModelNotDeployed, ModelNotFound, ModelNotReady
from services.gateway.inference.replicas import Replica, choose
from services.gateway.inference.table import RoutingTable
from shared.bus.port import Position, Record
from shared.contracts import topics
from shared.contracts.artifacts import ArtifactKind, ArtifactVersionState, artifact_key, version_key
from shared.contracts.deployments import DesiredDeployment, Load, ReplicaFailure, ReplicaState, ReplicaStatus
from shared.contracts.message import Message
from shared.contracts.topics import Topic
from tests.serving import TENANT, aliases_state, desired, status, version_state

NOW = 100.0


class Table(RoutingTable):
    """A routing table that takes messages, and finds their topic and key as their writers do."""

    def take(self, *messages: Message) -> Table:
        for message in messages:
            match message:
                case DesiredDeployment(name=name):
                    self._take(topics.DEPLOYMENTS_DESIRED, artifact_key(TENANT, name), message)
                case ReplicaStatus(replica_id=replica_id):
                    self._take(topics.DEPLOYMENTS_STATUS, replica_id, message)
                case ArtifactVersionState(name=name, version=version):
                    self._take(topics.REGISTRY_STATE, version_key(TENANT, name, version), message)
                case _:
                    self._take(topics.REGISTRY_STATE, artifact_key(TENANT, message.name), message)  # type: ignore[attr-defined]
        return self

    def forget(self, topic: Topic, key: str) -> None:
        self._take(topic, key, None)

    def answers(self, model: str, tenant: str = TENANT) -> tuple[str, list[str]]:
        route = self.resolve(tenant, model)
        return route.ref, sorted(replica.id for replica in route.replicas)

    def refusal(self, model: str, tenant: str = TENANT) -> InferenceError:
        with pytest.raises(InferenceError) as raised:
            self.resolve(tenant, model)
        return raised.value

    def _take(self, topic: Topic, key: str, message: Message | None) -> None:
        self.apply(Record(topic, key, Position(0, 0), message), NOW)


@pytest.fixture
def two_versions() -> Table:
    """tiny@1 and tiny@2, each deployed on a replica."""
    return Table().take(
        version_state("tiny@1"),
        version_state("tiny@2"),
        desired("one", "tiny@1", ["r1"]),
        desired("two", "tiny@2", ["r2"]),
        status("r1", "tiny@1"),
        status("r2", "tiny@2"),
    )


def test_a_deployments_name_means_its_model(two_versions: Table) -> None:
    assert two_versions.answers("one") == ("tiny@1", ["r1"])


def test_a_deployments_name_goes_before_a_models(two_versions: Table) -> None:
    two_versions.take(desired("tiny", "other@1", ["r3"]), status("r3", "other@1"))
    assert two_versions.answers("tiny") == ("other@1", ["r3"])


def test_a_version_is_that_version(two_versions: Table) -> None:
    assert two_versions.answers("tiny@1") == ("tiny@1", ["r1"])


def test_a_bare_name_is_the_newest_version_served(two_versions: Table) -> None:
    two_versions.take(version_state("tiny@3"))
    assert two_versions.answers("tiny") == ("tiny@2", ["r2"])


def test_a_bare_name_is_production_where_that_is_served(two_versions: Table) -> None:
    two_versions.take(aliases_state("tiny", production=1, latest=2))
    assert two_versions.answers("tiny") == ("tiny@1", ["r1"])


def test_a_bare_name_falls_back_while_production_loads(two_versions: Table) -> None:
    two_versions.take(aliases_state("tiny", production=1), status("r1", "tiny@1", ReplicaState.loading, boot_id="b2"))
    assert two_versions.answers("tiny") == ("tiny@2", ["r2"])


def test_an_alias_moves_with_the_registry(two_versions: Table) -> None:
    two_versions.take(aliases_state("tiny", stable=1))
    assert two_versions.answers("tiny@stable")[0] == "tiny@1"
    two_versions.take(aliases_state("tiny", stable=2))
    assert two_versions.answers("tiny@stable")[0] == "tiny@2"


def test_latest_is_the_registrys_newest(two_versions: Table) -> None:
    assert two_versions.answers("tiny@latest")[0] == "tiny@2"


def test_all_deployments_of_a_version_share_its_requests(two_versions: Table) -> None:
    two_versions.take(desired("more", "tiny@1", ["r5", "r6"]), status("r5", "tiny@1"), status("r6", "tiny@1"))
    assert two_versions.answers("tiny@1") == ("tiny@1", ["r1", "r5", "r6"])


def test_an_adapter_is_answered_by_the_replicas_that_have_loaded_it() -> None:
    table = Table().take(
        desired("base", "tiny@1", ["r1", "r2"], adapters=["tuned@1"]),
        status("r1", "tiny@1", adapters=["tuned@1"]),
        status("r2", "tiny@1"),
    )
    assert table.answers("tuned@1") == ("tuned@1", ["r1"])
    assert table.answers("tuned") == ("tuned@1", ["r1"])


def test_a_moving_deployment_answers_with_what_it_still_serves(two_versions: Table) -> None:
    two_versions.take(desired("one", "tiny@3", ["r1"], version=2))
    assert two_versions.answers("one") == ("tiny@1", ["r1"])


def test_a_replica_that_is_no_more_wanted_gets_no_requests(two_versions: Table) -> None:
    two_versions.take(desired("one", "tiny@1", ["r9"], version=2), status("r9", "tiny@1"))
    assert two_versions.answers("one") == ("tiny@1", ["r9"])


def test_an_older_desire_changes_nothing(two_versions: Table) -> None:
    two_versions.take(desired("one", "tiny@2", ["r2"], version=3), desired("one", "tiny@1", ["r1"], version=2))
    assert two_versions.answers("one") == ("tiny@2", ["r2"])


def test_an_unknown_model_is_named_with_those_there_are(two_versions: Table) -> None:
    error = two_versions.refusal("gpt-9")
    assert isinstance(error, ModelNotFound)
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert "gpt-9" in error.message
    assert "one, tiny@1, tiny@2, two" in error.message


def test_a_tenant_sees_only_its_own(two_versions: Table) -> None:
    error = two_versions.refusal("tiny@1", tenant="stranger")
    assert isinstance(error, ModelNotFound)
    assert "tiny@2" not in error.message


def test_a_model_that_is_not_deployed_says_how_to(two_versions: Table) -> None:
    error = two_versions.take(version_state("tiny@3")).refusal("tiny@3")
    assert isinstance(error, ModelNotDeployed)
    assert "llmos deploy tiny@3" in error.message


def test_an_adapter_that_is_not_loaded_names_the_base_to_deploy() -> None:
    table = Table().take(version_state("tuned@1", ArtifactKind.adapter, base_model="tiny@1"))
    assert "llmos deploy tiny@1" in table.refusal("tuned").message


@pytest.mark.parametrize("model", ["tiny@9", "tiny@nosuch", "tiny@", "@", "tiny@²"])
def test_a_version_or_alias_that_is_not_there_is_not_found(two_versions: Table, model: str) -> None:
    assert isinstance(two_versions.refusal(model), ModelNotFound)


def test_a_dataset_is_no_model() -> None:
    table = Table().take(version_state("corpus@1", ArtifactKind.dataset))
    assert "is a dataset" in table.refusal("corpus").message


@pytest.mark.parametrize(
    ("states", "sentence"),
    [
        ([ReplicaState.loading], "loading (40 %)"),
        ([ReplicaState.pulling, ReplicaState.loading], "loading (40 %)"),
        ([ReplicaState.failed, ReplicaState.loading], "loading (40 %)"),
        ([ReplicaState.failed, ReplicaState.failed], "no memory left"),
        ([], "starting"),
    ],
)
def test_a_deployment_that_is_not_ready_says_how_far_it_is(states: list[ReplicaState], sentence: str) -> None:
    table = Table().take(desired("tiny", "tiny@1", ["r0", "r1"]))
    for number, state in enumerate(states):
        table.take(status(f"r{number}", "tiny@1", state, percent=40, reason="no memory left"))
    error = table.refusal("tiny")
    assert isinstance(error, ModelNotReady)
    assert sentence in error.message
    assert int(error.headers["Retry-After"]) >= 1


def test_a_deployment_without_a_place_says_why() -> None:
    table = Table().take(desired("tiny", "tiny@1", [], replicas=1, problem="no node has 80 GB"))
    assert "no node has 80 GB" in table.refusal("tiny").message


def test_a_deployment_scaled_to_nothing_says_so() -> None:
    assert "0 replicas" in Table().take(desired("tiny", "tiny@1", [])).refusal("tiny").message


def test_an_adapter_that_could_not_be_loaded_says_why() -> None:
    table = Table().take(
        desired("tiny", "tiny@1", ["r1"], adapters=["tuned@1"]),
        status("r1", "tiny@1", failed_adapters={"tuned@1": "rank 128 is above 64"}),
    )
    assert "rank 128" in table.refusal("tuned@1").message


def test_tombstones_are_forgotten(two_versions: Table) -> None:
    two_versions.forget(topics.DEPLOYMENTS_DESIRED, f"{TENANT}/one")
    assert isinstance(two_versions.refusal("tiny@1"), ModelNotDeployed)
    two_versions.forget(topics.REGISTRY_STATE, f"{TENANT}/tiny@1")
    assert isinstance(two_versions.refusal("tiny@1"), ModelNotFound)
    two_versions.forget(topics.DEPLOYMENTS_STATUS, "r2")
    assert isinstance(two_versions.refusal("two"), ModelNotReady)


def replica(name: str, *, heard_at: float = NOW, running: int = 0) -> Replica:
    return Replica(status(name, "tiny@1", load=Load(running=running)), heard_at)


def first_two(replicas: object, count: int) -> list[Replica]:
    return list(replicas)[:count]  # type: ignore[call-overload, no-any-return]


def test_of_two_drawn_the_less_loaded_is_chosen() -> None:
    busy, idle, third = replica("busy", running=5), replica("idle", running=1), replica("third")
    assert choose([busy, idle, third], NOW, 5, first_two) is idle


def test_requests_of_ours_count_before_the_replica_reports_them() -> None:
    asked, other = replica("asked"), replica("other", running=1)
    asked.in_flight = 2
    assert choose([asked, other], NOW, 5, first_two) is other


def test_requests_of_ours_are_not_counted_twice() -> None:
    one = replica("one")
    one.in_flight = 3
    one.report(4, NOW)
    assert one.load == 4
    one.in_flight = 0
    assert one.load == 1


def test_a_silent_replica_is_chosen_only_where_there_is_no_other() -> None:
    silent, heard = replica("silent", heard_at=NOW - 6), replica("heard", running=100)
    assert choose([silent, heard], NOW, 5, first_two) is heard
    assert choose([silent], NOW, 5, first_two) is silent
    assert choose([], NOW, 5, first_two) is None


def test_a_late_status_of_the_same_process_changes_nothing() -> None:
    one = replica("one")
    one.update(status("one", "tiny@1", ReplicaState.draining, seq=5), NOW)
    one.update(status("one", "tiny@1", ReplicaState.ready, seq=4), NOW)
    assert one.status.state is ReplicaState.draining


def test_a_deployment_that_failed_says_so_and_why() -> None:
    failure = ReplicaFailure(replica_id="r1", node="n1", reason="no memory left", at=datetime.now(UTC))
    failed = desired("tiny", "tiny@1", [], replicas=1, problem="failed on n1: no memory left")
    error = Table().take(failed.changed(failures=[failure])).refusal("tiny")
    assert isinstance(error, ModelNotReady)
    assert "has failed: failed on n1: no memory left" in error.message
