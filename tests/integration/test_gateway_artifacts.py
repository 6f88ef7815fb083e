"""Artifacts, deployments, nodes and the compatibility routes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.contracts.artifacts import ArtifactKind, ArtifactPin
from shared.contracts.deployments import ReplicaState, ReplicaStatus
from shared.contracts.nodes import Capacity, NodeHeartbeat, Role, node_key
from shared.contracts.topics import DEPLOYMENTS_STATUS, NODES_HEARTBEATS
from shared.store.port import StoreUnavailable
from tests.ground import Ground
from tests.integration.gateway_world import GatewayWorld, Running
from tests.waiting import eventually


@pytest.fixture
def world(tmp_path: Path, ground: Ground) -> Iterator[GatewayWorld]:
    world = GatewayWorld(tmp_path, ground)
    yield world
    world.close()


@pytest.fixture
def here(world: GatewayWorld) -> Iterator[Running]:
    with world.gateway() as running:
        yield running


def put(
    world: GatewayWorld, here: Running, name: str, kind: ArtifactKind = ArtifactKind.model, **more: Any
) -> ArtifactPin:
    pin = world.registry.put(name, kind, {"config.json": b"{}", "deep/model.safetensors": b"weights"}, **more)
    eventually(lambda: here.http.get(f"/v1/artifacts/{pin.ref}").status_code == 200)
    return pin


def test_versions_aliases_and_lineage(world: GatewayWorld, here: Running) -> None:
    put(world, here, "base")
    put(world, here, "base")
    tuned = put(world, here, "tuned", ArtifactKind.adapter, parents=["base@2", "file-1@1"])
    assert [one["version"] for one in here.http.get("/v1/artifacts/base/versions").json()["data"]] == [2, 1]
    moved = here.http.put("/v1/artifacts/base/aliases/production", json={"version": 1})
    assert (moved.status_code, moved.json()["version"]) == (200, 1)
    assert here.http.get("/v1/artifacts/base@production").json()["id"] == "base@1"
    for alias, version in (("production", 1), ("latest", 2)):
        assert here.http.get(f"/v1/artifacts/base/aliases/{alias}").json()["version"] == version
    assert here.http.get("/v1/artifacts/base/aliases/nope").json()["error"]["code"] == "alias_not_found"
    assert here.http.get("/v1/artifacts/nope/aliases/latest").json()["error"]["code"] == "artifact_not_found"
    assert here.http.get("/v1/artifacts/base").json()["aliases"] == {"latest": 2, "production": 1}
    assert here.http.delete("/v1/artifacts/base/aliases/production").status_code == 200
    assert here.http.get("/v1/artifacts/base@production").status_code == 404
    up = here.http.get(f"/v1/artifacts/{tuned.ref}/lineage").json()["ancestors"]
    assert [(one["ref"], one["exists"]) for one in up] == [("base@2", True), ("file-1@1", False)]
    down = here.http.get("/v1/artifacts/base@2/lineage").json()["descendants"]
    assert [one["ref"] for one in down] == [tuned.ref]
    assert [one["name"] for one in here.http.get("/v1/artifacts", params={"kind": "adapter"}).json()["data"]] == [
        "tuned"
    ]


def test_the_last_word_on_an_alias_counts(world: GatewayWorld, here: Running) -> None:
    for _ in range(3):
        put(world, here, "base")
    for version in (1, 2, 3):
        assert here.http.put("/v1/artifacts/base/aliases/production", json={"version": version}).status_code == 200
    assert here.http.get("/v1/artifacts/base@production").json()["version"] == 3


def test_downloads_as_tar_and_file_by_file(world: GatewayWorld, here: Running) -> None:
    put(world, here, "base")
    with tarfile.open(fileobj=io.BytesIO(here.http.get("/v1/artifacts/base/download").content)) as tar:
        names = {name.split("/", 1)[-1] if name.startswith("base") else name for name in tar.getnames()}
        assert {"config.json", "deep/model.safetensors"} <= names
    file = here.http.get("/v1/artifacts/base@1/files/deep/model.safetensors", headers={"Range": "bytes=1-3"})
    assert (file.status_code, file.content) == (206, b"eig")
    assert here.http.get("/v1/artifacts/base@1/files/nope").status_code == 404
    assert here.http.get("/v1/artifacts/base@1/files/../../secret").status_code == 404


def test_a_download_while_the_store_is_away_is_a_503(world: GatewayWorld, here: Running, monkeypatch: Any) -> None:
    put(world, here, "base")

    def away(*_: object) -> Iterator[bytes]:
        raise StoreUnavailable("the store does not answer")

    monkeypatch.setattr(world.store, "read", away)
    for path in ("download", "files/config.json"):
        refused = here.http.get(f"/v1/artifacts/base@1/{path}")
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]


def test_a_refusal_of_the_registry_is_the_answer(world: GatewayWorld, here: Running) -> None:
    put(world, here, "base")
    world.registry.refuse = "it is pinned"
    refused = here.http.delete("/v1/artifacts/base@1")
    assert (refused.status_code, refused.json()["error"]["message"]) == (409, "The registry refused: it is pinned")


def test_a_deployment_from_creation_to_its_end(world: GatewayWorld, here: Running) -> None:
    put(world, here, "base")
    made = here.http.post(
        "/v1/deployments", json={"model": "base", "replicas": 2, "engine_args": {"max_model_len": 64}}
    )
    assert (made.status_code, made.json()["name"], made.json()["model"]) == (202, "base", "base@1")
    eventually(lambda: show(here)["version"] == 1)
    world.bus.publish(
        DEPLOYMENTS_STATUS,
        "r1",
        ReplicaStatus(replica_id="r1", deployment="base", node="n", state=ReplicaState.ready, model="base@1"),
    )
    eventually(lambda: show(here)["status"] == "degraded")
    assert here.http.patch("/v1/deployments/base", json={"replicas": 1}).json()["replicas"] == 1
    eventually(lambda: show(here)["status"] == "ready")
    assert "base" in [one.id for one in here.openai.models.list()]
    used = here.http.delete("/v1/artifacts/base@1")
    assert (used.status_code, used.json()["error"]["code"]) == (409, "in_use")
    assert here.http.delete("/v1/deployments/base").status_code == 202
    eventually(lambda: here.http.get("/v1/deployments/base").status_code == 404)


def show(here: Running, name: str = "base") -> dict[str, Any]:
    found: dict[str, Any] = here.http.get(f"/v1/deployments/{name}").json()
    return found


def test_the_first_descriptions_routes(world: GatewayWorld, here: Running) -> None:
    put(world, here, "base")
    assert [one["id"] for one in here.http.get("/api/models").json()["models"]] == ["base@1"]
    assert here.http.get("/api/models/base").json()["kind"] == "model"
    made = here.http.post("/api/models/base/deploy")
    assert (made.status_code, made.json()["replicas"]) == (202, 1)
    eventually(lambda: show(here)["version"] == 1)


def test_nodes_say_what_they_offer(world: GatewayWorld, here: Running) -> None:
    for role in Role:
        beat = NodeHeartbeat(node="n1", role=role, boot_id="b", capacity=Capacity(cpus=2, memory_bytes=2**30))
        world.bus.publish(NODES_HEARTBEATS, node_key("n1", role), beat)
    node = eventually(lambda: nodes[0] if (nodes := here.http.get("/v1/nodes").json()["data"]) else None)
    assert node["alive"]
    eventually(lambda: len(here.http.get("/v1/nodes/n1").json()["roles"]) == 2)
    assert here.http.get("/v1/nodes/n2").status_code == 404
