"""The agent's pure rules."""

from __future__ import annotations

from typing import Any

import pytest

from services.inference.domain import Seat, pause_s, reason_from_log, seats, too_big
from shared.contracts.artifacts import ArtifactKind, ArtifactPin, Manifest, ManifestFile
from shared.contracts.deployments import DeploymentSpec, DesiredDeployment, ReplicaPlace
from shared.contracts.nodes import Capacity, Device

GIB = 2**30
MODEL = ArtifactPin(name="m", version=1, kind=ArtifactKind.model, manifest_key="manifests/default/m/1.json")
LORA = ArtifactPin(name="l", version=1, kind=ArtifactKind.adapter, manifest_key="manifests/default/l/1.json")


def spec(**fields: Any) -> DeploymentSpec:
    return DeploymentSpec(model=MODEL, **fields)


def seat(devices: list[int] | None = None, **fields: Any) -> Seat:
    return Seat("d", "default", 1, ReplicaPlace(replica_id="r", node="n", devices=devices or []), spec(**fields))


def weights(size_bytes: int, **metadata: Any) -> Manifest:
    file = ManifestFile(path="model.safetensors", size_bytes=size_bytes, sha256="0" * 64)
    return Manifest(files=[file], metadata=metadata)


def test_a_node_keeps_exactly_the_replicas_placed_on_it() -> None:
    places = [ReplicaPlace(replica_id="a", node="n1"), ReplicaPlace(replica_id="b", node="n2")]
    desired = DesiredDeployment(name="d", version=4, spec=spec(), replicas=places)
    assert list(seats([desired], "n1")) == ["a"]
    assert seats([desired], "n2")["b"].version == 4
    assert seats([], "n1") == {}


@pytest.mark.parametrize("change", [{"adapters": [LORA]}, {"replicas": 3}, {"auto_adapters": False}])
def test_adapters_and_scale_leave_a_running_process_alone(change: dict[str, Any]) -> None:
    assert seat().same_process(seat(**change))


@pytest.mark.parametrize(
    "change",
    [{"engine_args": {"max_model_len": 8}}, {"max_loras": 0}, {"devices": [1]}, {"max_queue": 1}, {"engine": "echo"}],
)
def test_anything_else_needs_a_new_process(change: dict[str, Any]) -> None:
    assert not seat().same_process(seat(**change))


def test_without_room_for_adapters_none_are_wanted() -> None:
    assert seat(adapters=[LORA], max_loras=0).adapters == {}
    assert list(seat(adapters=[LORA]).adapters) == ["l@1"]


def test_pauses_double_up_to_a_minute() -> None:
    assert [pause_s(crashes) for crashes in (1, 2, 3, 4, 99)] == [1, 2, 4, 8, 60]


def test_a_model_too_big_for_the_node_is_known_before_it_is_pulled() -> None:
    node = Capacity(cpus=2, memory_bytes=24 * GIB)
    assert too_big(weights(8 * GIB), seat(), node) == ""
    reason = too_big(weights(30 * GIB), seat(), node)
    assert "m@1 (30.0 GiB)" in reason
    assert "this node has 24.0 GiB" in reason


def test_the_number_format_it_is_served_in_counts() -> None:
    node = Capacity(cpus=2, memory_bytes=24 * GIB)
    stored_wide = weights(30 * GIB, dtype="float32")
    assert too_big(stored_wide, seat(engine_args={"dtype": "bfloat16"}), node) == ""


def test_accelerators_are_counted_together() -> None:
    devices = [Device(index=index, kind="gpu", memory_bytes=80 * GIB) for index in range(2)]
    node = Capacity(cpus=16, memory_bytes=128 * GIB, devices=devices)
    assert "accelerators" in too_big(weights(100 * GIB), seat([0]), node)
    assert too_big(weights(100 * GIB), seat([0, 1]), node) == ""


def test_the_reason_is_the_cause_and_not_its_wrapper() -> None:
    lines = [
        "(EngineCore pid=9) ERROR [core.py:1510] ValueError: Available memory on node 0 is less than desired",
        "Traceback (most recent call last):",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        "resource_tracker: UserWarning: leaked",
    ]
    assert reason_from_log(lines, 1) == "ValueError: Available memory on node 0 is less than desired"
    assert reason_from_log(lines[1:3], 1).startswith("RuntimeError: Engine core")


def test_a_process_that_said_nothing_useful_is_described() -> None:
    assert "signal 9" in reason_from_log(["loading"], -9)
    assert "out of memory" in reason_from_log([], -9)
    assert reason_from_log(["one", "", "two", ""], 3).endswith("code 3; its last line was: two")
