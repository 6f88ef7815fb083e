"""Replicas get seats, keep them, and carry the adapters of their base."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from itertools import count

from services.scheduler.deployments import (
    Artifacts,
    Deployment,
    Surroundings,
    changed_spec,
    desired_deployment,
    plan,
    undeployed,
)
from services.scheduler.handlers import deployed
from services.scheduler.placement import Rooms
from shared.contracts.artifacts import ArtifactKind, ArtifactPin, ArtifactVersionState, Manifest, version_key
from shared.contracts.deployments import Deploy, DeploymentSpec, Scale, Undeploy
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
        self.artifacts = Artifacts()
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

    def delete(self, name: str) -> None:
        self.artifacts.saw(version_key("default", name, 1), None)

    def plan(self) -> Deployment:
        rooms = Rooms.of(
            Role.inference,
            [a_node(name, devices=self.devices, role=Role.inference) for name in self.nodes],
            self.deployment.uses(),
        )
        around = Surroundings(
            artifacts=self.artifacts,
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
