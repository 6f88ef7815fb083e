"""Replicas get seats, keep them, and carry the adapters of their base."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from itertools import count

from services.scheduler.deployments import (
    Artifacts,
    Deployment,
    GivenUp,
    Surroundings,
    changed_spec,
    desired_deployment,
    plan,
    undeployed,
)
from services.scheduler.handlers import deployed
from services.scheduler.placement import GIB, Rooms
from shared.contracts.artifacts import ArtifactKind, ArtifactPin, ArtifactVersionState, Manifest, version_key
from shared.contracts.deployments import Deploy, DeploymentSpec, ReplicaState, ReplicaStatus, Scale, Undeploy
from shared.contracts.jobs import Resources
from shared.contracts.nodes import Role
from tests.unit.scheduler.jobs import NOW
from tests.unit.scheduler.test_placement import a_node

MODEL = ArtifactPin(name="base", version=1, kind=ArtifactKind.model, manifest_key="m")


class Cluster:
    """Inference nodes, a registry, and one deployment that is planned again and again."""

    def __init__(self, nodes: Iterable[str] = ("n1", "n2"), devices: int = 0, **spec: object) -> None:
        self.nodes = list(nodes)
        self.devices = devices
        self.memory: dict[str, int] = {}
        self.artifacts = Artifacts()
        self.given_up = GivenUp()
        self.register("base", kind=ArtifactKind.model)
        self.still_listed: set[str] = set()
        self.ids = (f"r{number}" for number in count(1))
        self.deployment = Deployment(name="chat", spec=DeploymentSpec.model_validate({"model": MODEL, **spec}))

    def register(
        self,
        name: str,
        base: str = "",
        age_s: float = 0,
        kind: ArtifactKind = ArtifactKind.adapter,
        tenant: str = "default",
    ) -> ArtifactPin:
        state = ArtifactVersionState(
            tenant=tenant,
            name=name,
            version=1,
            kind=kind,
            manifest_key="m",
            manifest=Manifest(files=[], metadata={"base_model": base} if base else {}),
            publication_id=name,
            created_at=NOW - timedelta(seconds=age_s),
        )
        self.artifacts.saw(version_key(tenant, name, 1), state)
        return state.pin

    def said(self, replica: str, state: ReplicaState = ReplicaState.failed, version: int = 0, reason: str = "") -> None:
        """A status of one of the replicas; the version that its agent follows is the newest, unless given."""
        status = ReplicaStatus(
            replica_id=replica,
            deployment="chat",
            node="n1",
            state=state,
            reason=reason,
            deployment_version=version or self.deployment.version,
        )
        self.given_up.saw(replica, status)

    def command(self, command: Deploy | Scale) -> None:
        after = deployed(self.deployment, command)
        assert after
        self.deployment = after

    def delete(self, name: str) -> None:
        self.artifacts.saw(version_key("default", name, 1), None)

    def plan(self) -> Deployment:
        memory = {name: self.memory.get(name, 64 * GIB) for name in self.nodes}
        nodes = [
            a_node(name, devices=self.devices, role=Role.inference, memory_bytes=memory[name]) for name in self.nodes
        ]
        rooms = Rooms.of(Role.inference, nodes, self.deployment.uses())
        around = Surroundings(
            artifacts=self.artifacts,
            given_up=self.given_up,
            is_gone=lambda node: node not in self.nodes,
            still_there=lambda seat: seat.replica_id in self.still_listed,
            new_id=lambda _: next(self.ids),
        )
        self.deployment = plan(self.deployment, rooms, around)
        return self.deployment

    @property
    def seats(self) -> list[tuple[str, str]]:
        return [(seat.replica_id, seat.node) for seat in self.deployment.replicas]


def test_replicas_are_spread_and_stay_where_they_are() -> None:
    cluster = Cluster(replicas=2)
    first = cluster.plan()
    assert cluster.seats == [("r1", "n1"), ("r2", "n2")]
    assert cluster.plan() is first


def test_scaling_down_removes_the_newest() -> None:
    cluster = Cluster(replicas=3)
    cluster.plan()
    cluster.deployment = deployed(cluster.deployment, Scale(name="chat", replicas=1))  # type: ignore[assignment]
    cluster.plan()
    assert [replica for replica, _ in cluster.seats] == ["r1"]


def test_a_replica_whose_node_is_gone_moves_and_is_a_new_one() -> None:
    cluster = Cluster(replicas=2)
    cluster.plan()
    cluster.nodes = ["n2"]
    cluster.plan()
    assert cluster.seats == [("r3", "n2"), ("r2", "n2")]


def test_a_replica_with_nowhere_to_go_waits_for_its_node() -> None:
    cluster = Cluster(nodes=["n1"], replicas=1)
    cluster.plan()
    cluster.nodes = []
    assert "waits for the node n1" in cluster.plan().problem
    cluster.nodes = ["n1"]
    assert cluster.plan().problem == ""
    assert cluster.seats == [("r1", "n1")]


def test_too_few_places_are_a_problem_that_says_why() -> None:
    cluster = Cluster(nodes=["n1"], devices=2, replicas=3)
    assert cluster.plan().problem == "2 of 3 replicas are placed: no inference node has room for more"
    huge = Cluster(nodes=["n1"], devices=2, resources=Resources(devices=4))
    assert huge.plan().problem == "0 of 1 replicas are placed: needs 4 devices; the largest node has 2"
    assert Cluster(nodes=[]).plan().problem == "0 of 1 replicas are placed: waits for an inference node"


def test_devices_of_a_leaving_replica_are_free_once_its_node_no_longer_lists_it() -> None:
    cluster = Cluster(nodes=["n1"], devices=1, replicas=1)
    cluster.plan()
    cluster.still_listed = {"r1"}
    cluster.deployment = changed_spec(
        undeployed(cluster.deployment), cluster.deployment.spec
    )  # deployed again while it drains
    assert cluster.plan().replicas == []
    cluster.still_listed = set()
    cluster.plan()
    assert cluster.plan().replicas[0].devices == [0]


def test_a_leaving_replica_holds_what_it_was_given_and_not_what_is_asked_for_now() -> None:
    cluster = Cluster(nodes=["n1"], replicas=1, resources=Resources(memory_bytes=40 * GIB))
    cluster.plan()
    cluster.still_listed = {"r1"}
    smaller = cluster.deployment.spec.changed(resources=Resources(memory_bytes=30 * GIB))
    cluster.command(Deploy(name="chat", spec=smaller))
    cluster.deployment = Deployment.model_validate_json(cluster.deployment.model_dump_json())
    assert [use.memory_bytes for use in cluster.deployment.uses()] == [40 * GIB]
    assert "no inference node has room for more" in cluster.plan().problem
    cluster.still_listed = set()
    cluster.plan()
    assert cluster.plan().replicas
    assert [use.memory_bytes for use in cluster.deployment.uses()] == [30 * GIB]


def test_a_leaving_replica_that_an_older_version_wrote_down_holds_what_its_deployment_asks_for() -> None:
    before = Deployment.model_validate(
        {
            "name": "chat",
            "spec": {"model": MODEL, "resources": {"memory_bytes": GIB}},
            "leaving": [{"replica_id": "r1", "node": "n1", "devices": [0]}],
        }
    )
    (held,) = before.uses()
    assert (held.node, held.memory_bytes, held.devices) == ("n1", GIB, [0])


def test_registered_adapters_of_the_base_are_adopted_newest_first_up_to_the_limit() -> None:
    cluster = Cluster(max_loras=2)
    for name, age_s in (("old", 30), ("newest", 10), ("new", 20)):
        cluster.register(name, base="base@1", age_s=age_s)
    assert [pin.name for pin in cluster.plan().adapters] == ["newest", "new"]


def test_adapters_that_were_asked_for_come_first() -> None:
    cluster = Cluster(max_loras=2, adapters=[ArtifactPin(name="mine", version=1, kind="adapter", manifest_key="m")])
    cluster.register("mine", age_s=99)
    cluster.register("newer", base="base@1")
    assert [pin.name for pin in cluster.plan().adapters] == ["mine", "newer"]


def test_adapters_of_other_bases_and_tenants_are_not_adopted() -> None:
    cluster = Cluster()
    cluster.register("other", base="base@2")
    cluster.register("theirs", base="base@1", tenant="them")
    assert cluster.plan().adapters == []
    assert Cluster(auto_adapters=False).plan().adapters == []


def test_a_deleted_adapter_is_let_go() -> None:
    cluster = Cluster()
    cluster.register("gone", base="base@1")
    cluster.plan()
    cluster.delete("gone")
    assert cluster.plan().adapters == []


def test_a_missing_model_or_adapter_is_a_problem_that_names_it() -> None:
    cluster = Cluster(adapters=[ArtifactPin(name="mine", version=1, kind="adapter", manifest_key="m")])
    cluster.delete("base")
    assert cluster.plan().problem == "the model base@1 is not in the registry; not in the registry: mine@1"
    assert cluster.deployment.replicas == []


def test_versions_only_grow_even_when_a_name_is_deployed_again() -> None:
    cluster = Cluster()
    first = cluster.plan()
    gone = deployed(first, Undeploy(name="chat"))
    assert gone
    assert desired_deployment(gone) is None
    again = deployed(gone, Deploy(name="chat", spec=first.spec))
    assert again
    assert again.version > gone.version > first.version


def test_commands_for_what_is_not_there_change_nothing() -> None:
    assert deployed(None, Scale(name="chat", replicas=2)) is None
    assert deployed(None, Undeploy(name="chat")) is None
    gone = undeployed(Cluster().plan())
    assert deployed(gone, Scale(name="chat", replicas=2)) is gone


def test_a_change_of_the_model_keeps_the_seats_and_a_change_of_size_gives_them_up() -> None:
    cluster = Cluster()
    placed = cluster.plan()
    other = placed.spec.changed(engine_args={"max_model_len": 8})
    assert changed_spec(placed, other).replicas == placed.replicas
    larger = placed.spec.changed(resources=Resources(cpus=2))
    assert changed_spec(placed, larger).replicas == []


def test_a_replica_that_was_given_up_leaves_its_seat_and_its_reason() -> None:
    cluster = Cluster(nodes=["n1"], devices=1)
    cluster.plan()
    cluster.still_listed = {"r1"}
    cluster.said("r1", reason="no room for the KV cache")
    failed = cluster.plan()
    assert failed.replicas == []
    assert [(each.replica_id, each.node, each.reason) for each in failed.failures] == [
        ("r1", "n1", "no room for the KV cache")
    ]
    assert failed.problem == (
        "failed on n1: no room for the KV cache (0 of 1 replicas are placed; deploy or scale it again to try once more)"
    )
    assert [list(use.devices) for use in failed.uses()] == [[0]]
    cluster.still_listed = set()
    freed = cluster.plan()
    assert freed.uses() == []
    assert cluster.plan() is freed


def test_states_before_the_end_cost_no_seat() -> None:
    cluster = Cluster()
    placed = cluster.plan()
    for state in ReplicaState:
        if state is not ReplicaState.failed:
            cluster.said("r1", state)
            assert cluster.plan() is placed
    cluster.said("r1")
    cluster.said("r1", ReplicaState.loading)
    assert cluster.plan() is placed


def test_a_failed_replica_is_tried_on_another_node_in_the_same_step() -> None:
    cluster = Cluster()
    before = cluster.plan()
    cluster.said("r1", reason="broken")
    after = cluster.plan()
    assert cluster.seats == [("r2", "n2")]
    assert (after.version, after.problem) == (before.version + 1, "")


def test_after_a_failure_the_largest_node_is_tried_first() -> None:
    cluster = Cluster(nodes=["n1", "n2", "n3"])
    cluster.plan()
    cluster.memory = {"n3": 2**50}
    cluster.said("r1", reason="too big")
    cluster.plan()
    assert cluster.seats == [("r2", "n3")]


def test_a_model_that_fails_everywhere_is_tried_on_a_few_nodes_only() -> None:
    cluster = Cluster(nodes=[f"n{number}" for number in range(1, 10)])
    tried = []
    while cluster.plan().replicas:
        ((replica, node),) = cluster.seats
        tried.append(node)
        cluster.said(replica, reason="broken")
    assert tried == ["n1", "n2", "n3"]
    assert "failed on n1, n2, n3: broken" in cluster.deployment.problem


def test_a_node_that_comes_is_tried_and_one_that_failed_is_not() -> None:
    cluster = Cluster(nodes=["n1"])
    cluster.plan()
    cluster.said("r1")
    assert cluster.plan().replicas == []
    cluster.nodes = ["n1", "n2"]
    cluster.plan()
    assert cluster.seats == [("r2", "n2")]
    assert cluster.deployment.problem == ""


def test_healthy_replicas_stay_when_another_fails_beside_them() -> None:
    cluster = Cluster(nodes=["n1"], replicas=3)
    cluster.plan()
    cluster.said("r2", reason="uncorrectable error")
    assert "2 of 3 replicas are placed" in cluster.plan().problem
    assert cluster.seats == [("r1", "n1"), ("r3", "n1")]


def test_deploying_or_scaling_again_tries_again_even_with_the_same_spec() -> None:
    cluster = Cluster(nodes=["n1"])
    cluster.plan()
    cluster.said("r1")
    spec = cluster.plan().spec
    cluster.command(Deploy(name="chat", spec=spec))
    assert cluster.plan().failures == []
    assert cluster.seats == [("r2", "n1")]
    cluster.said("r2")
    assert cluster.plan().replicas == []
    cluster.command(Scale(name="chat", replicas=1))
    cluster.plan()
    assert cluster.seats == [("r3", "n1")]


def test_a_failure_from_before_a_command_does_not_undo_it() -> None:
    """The agent gave up the old arguments while the new ones were on their way."""
    cluster = Cluster(nodes=["n1"])
    old = cluster.plan()
    cluster.command(Deploy(name="chat", spec=old.spec.changed(engine_args={"max_model_len": 8})))
    cluster.said("r1", version=old.version)
    cluster.plan()
    assert cluster.seats == [("r1", "n1")]
    cluster.said("r1")
    assert cluster.plan().replicas == []


def test_an_adapter_that_comes_later_does_not_bring_a_failed_replica_back() -> None:
    cluster = Cluster(nodes=["n1"])
    cluster.plan()
    cluster.said("r1")
    cluster.plan()
    cluster.register("style", base="base@1")
    assert cluster.plan().adapters
    assert cluster.seats == []
