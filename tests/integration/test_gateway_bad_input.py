"""Bad input: one clear sentence, the field's name, never a 500."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.contracts.artifacts import ArtifactKind
from tests.databases import KINDS, maker
from tests.integration.gateway_world import GatewayWorld, Running
from tests.waiting import eventually

JOBS, TUNING, DEPLOYMENTS = "/v1/jobs", "/v1/fine_tuning/jobs", "/v1/deployments"
DEEP = b'{"type": "probe", "params": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayWorld]:
    folder = Path(tmp_path_factory.mktemp("gateway"))
    world = GatewayWorld(
        folder, db_url=maker(request.param, request, folder)("gateway"), allow_hub=False, max_body_bytes=100_000
    )
    yield world
    world.close()


@pytest.fixture(scope="module")
def here(world: GatewayWorld) -> Iterator[Running]:
    with world.gateway() as running:
        world.registry.put("base", ArtifactKind.model, {"a.safetensors": b"w"})
        world.registry.put("lora", ArtifactKind.adapter, {"a.safetensors": b"w"}, metadata={"base_model": "base@1"})
        world.registry.put("other", ArtifactKind.model, {"a.safetensors": b"o"})
        eventually(lambda: running.http.get("/v1/artifacts/other").status_code == 200)
        yield running


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "code"),
    [
        (JOBS, {}, 400, "type", "missing_field"),
        (JOBS, {"type": "nope"}, 400, "type", "unknown_type"),
        (JOBS, {"type": "probe", "nope": 1}, 400, "nope", "unknown_field"),
        (JOBS, {"type": "probe", "params": {"nope": 1}}, 400, "params.nope", "unknown_field"),
        (JOBS, {"type": "probe", "params": {"steps": -1}}, 400, "params.steps", "invalid_value"),
        (JOBS, {"type": "probe", "params": {"steps": "x"}}, 400, "params.steps", "invalid_value"),
        (JOBS, {"type": "probe", "inputs": {"nope": "a"}}, 400, "inputs.nope", "unknown_input"),
        (JOBS, {"type": "probe", "inputs": {"data": "file-1"}}, 404, "inputs.data", "artifact_not_found"),
        (JOBS, {"type": "probe", "inputs": {"data": "base"}}, 400, "inputs.data", "wrong_kind"),
        (JOBS, {"type": "pretrain"}, 400, "inputs.training_data", "missing_input"),
        (JOBS, {"type": "sft"}, 400, "inputs.model", "missing_input"),
        (JOBS, {"type": "probe", "output": "../x"}, 400, "output", "invalid_value"),
        (JOBS, {"type": "probe", "priority": 101}, 400, "priority", "invalid_value"),
        (JOBS, {"type": "probe", "resources": {"gpus": 1}}, 400, "resources.gpus", "unknown_field"),
        (JOBS, {"type": "probe", "labels": {"a": 1}}, 400, "labels.a", "invalid_value"),
        (JOBS, {"type": "probe", "name": "a\0b"}, 400, None, "invalid_value"),
        (JOBS, {"type": "import", "params": {"source": "a/b"}}, 403, "params.source", "hub_forbidden"),
        (JOBS, {"type": "import"}, 400, "params.source", "missing_input"),
        (JOBS, {"type": "import", "inputs": {"file": "base"}}, 400, "inputs.file", "wrong_kind"),
        (
            JOBS,
            {"type": "import", "params": {"source": "a/b"}, "inputs": {"file": "f"}},
            400,
            "params.source",
            "invalid_value",
        ),
        (JOBS, {"type": "probe", "output": "base"}, 409, "output", "other_kind"),
        (JOBS, [1], 400, None, "invalid_value"),
        (TUNING, {"model": "base"}, 400, "training_file", "missing_field"),
        (TUNING, {"model": "base", "training_file": "file-1"}, 404, "training_file", "artifact_not_found"),
        (TUNING, {"model": "nope", "training_file": "file-1"}, 404, "model", "model_not_found"),
        (TUNING, {"model": "own/er", "training_file": "file-1"}, 403, "model", "hub_forbidden"),
        (TUNING, {"model": "lora", "training_file": "file-1"}, 400, "model", "wrong_kind"),
        (TUNING, {"model": "base", "training_file": "f", "suffix": "a/b"}, 400, "suffix", "invalid_value"),
        (
            TUNING,
            {"model": "base", "training_file": "f", "method": {"type": "dpo"}},
            400,
            "method.type",
            "invalid_value",
        ),
        (
            TUNING,
            {"model": "base", "training_file": "f", "hyperparameters": {"n_epochs": 0}},
            400,
            "params.epochs",
            "invalid_value",
        ),
        (TUNING, {"model": "base", "training_file": "f", "params": {"lora": 1}}, 400, "params.lora", "unknown_field"),
        (DEPLOYMENTS, {"model": "nope"}, 404, "model", "artifact_not_found"),
        (DEPLOYMENTS, {"model": "base@9"}, 404, "model", "artifact_not_found"),
        (DEPLOYMENTS, {"model": "lora"}, 400, "model", "wrong_kind"),
        (DEPLOYMENTS, {"model": "base", "name": "a b"}, 400, "name", "invalid_value"),
        (DEPLOYMENTS, {"model": "base", "replicas": -1}, 400, "replicas", "invalid_value"),
        (DEPLOYMENTS, {"model": "other", "adapters": ["lora"]}, 400, "adapters.0", "wrong_base"),
        (DEPLOYMENTS, {"model": "base", "engine_args": {"a": 2**70}}, 400, None, "invalid_value"),
        ("/api/models/nope/deploy", {}, 404, "model", "artifact_not_found"),
    ],
)
def test_a_wrong_field_is_named(here: Running, path: str, body: Any, status: int, param: str | None, code: str) -> None:
    check(here.http.post(path, json=body), status, param, code)


def check(answer: httpx.Response, status: int, param: str | None, code: str | None) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code), error
    assert error["type"]
    assert error["message"].strip()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"", 400, "missing_body"),
        (b"\xff\xfe", 400, None),
        (b'{"type": "probe", "name": "\\ud800"}', 400, "invalid_value"),
        (b'{"type": "probe", "params": {"step_s": NaN}}', 400, "invalid_value"),
        (DEEP, 400, None),
        (b'{"name": "' + b"x" * 200_000 + b'"}', 413, "body_too_large"),
    ],
)
def test_a_broken_body_is_refused(here: Running, body: bytes, status: int, code: str | None) -> None:
    answer = here.http.post(JOBS, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert code is None or answer.json()["error"]["code"] == code


def test_a_body_without_a_length_is_bounded_as_well(here: Running) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(50):
            yield b" " * 10_000

    check(here.http.post(JOBS, content=endless()), 413, None, "body_too_large")


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data", "application/x-www-form-urlencoded"])
def test_another_content_type_is_refused(here: Running, content_type: str) -> None:
    answer = here.http.post(JOBS, content=b'{"type": "probe"}', headers={"Content-Type": content_type})
    assert answer.status_code in (400, 415)
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/jobs/nope", 404),
        ("POST", "/v1/jobs/nope/cancel", 404),
        ("GET", "/v1/jobs/nope/events?stream=true", 404),
        ("GET", "/v1/jobs?limit=0", 400),
        ("GET", "/v1/jobs?limit=99999999999999999999999", 400),
        ("GET", "/v1/jobs?status=nope", 400),
        ("GET", "/v1/jobs?type=nope", 400),
        ("GET", "/v1/jobs?label=nope", 400),
        ("GET", "/v1/jobs?after=%00", 400),
        ("GET", "/v1/jobs/a%00b", 400),
        ("GET", "/v1/files/nope", 404),
        ("GET", "/v1/files/nope/content", 404),
        ("DELETE", "/v1/files/nope", 404),
        ("GET", "/v1/models/nope", 404),
        ("GET", "/v1/models/own/er", 404),
        ("DELETE", "/v1/models/nope", 404),
        ("DELETE", "/v1/models/no%20name%3F", 404),
        ("DELETE", "/v1/artifacts/base@%C2%B2", 400),
        ("GET", "/v1/artifacts/nope", 404),
        ("GET", "/v1/artifacts/base@999999999999999999999", 404),
        ("GET", "/v1/artifacts/base@%C2%B2", 404),
        ("DELETE", "/v1/artifacts/base@latest", 400),
        ("GET", "/v1/artifacts/%2e%2e", 404),
        ("DELETE", "/v1/artifacts/base/aliases/latest", 400),
        ("DELETE", "/v1/artifacts/base/aliases/nope", 404),
        ("GET", "/v1/deployments/nope", 404),
        ("DELETE", "/v1/deployments/nope", 404),
        ("GET", "/v1/nowhere", 404),
        ("PUT", "/v1/jobs", 405),
    ],
)
def test_unknown_things_are_4xx_in_the_envelope(here: Running, method: str, path: str, status: int) -> None:
    answer = here.http.request(method, path)
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic abc", "Bearer \xff"])
def test_without_a_right_key_nothing_but_operations_answers(here: Running, header: str | None) -> None:
    headers = [(b"authorization", header.encode("latin-1"))] if header is not None else []
    with httpx.Client(base_url=here.url) as http:
        for method, path in [("GET", "/v1/jobs"), ("POST", JOBS), ("GET", "/api/models"), ("POST", "/predict")]:
            answer = http.request(method, path, headers=headers)
            assert answer.status_code == 401, (path, answer.text)
            assert answer.json()["error"]["type"] == "authentication_error"
        for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"):
            assert http.get(path, headers=headers).status_code == 200, path


def test_a_wrong_cursor_is_named(here: Running) -> None:
    job_id = here.submit()
    for cursor in ("x", "1", "-1-5", "0-99999999999999999999"):
        check(here.http.get(f"/v1/jobs/{job_id}/events", params={"after": cursor}), 400, "after", "invalid_cursor")


def test_an_idempotency_key_has_bounds(here: Running) -> None:
    answer = here.http.post(JOBS, json={"type": "probe"}, headers={"Idempotency-Key": "x" * 300})
    assert answer.status_code == 400


def test_uploads_must_be_multipart_with_a_file_and_a_purpose(here: Running) -> None:
    check(here.http.post("/v1/files", json={}), 415, None, "not_multipart")
    check(here.http.post("/v1/files", files={"file": ("a", b"x")}), 400, "purpose", "missing_field")
    check(here.http.post("/v1/files", data={"purpose": "x"}, files={"nope": b""}), 400, "nope", "unknown_field")
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    check(here.http.post("/v1/files", content=b"garbage", headers=headers), 400, None, "invalid_multipart")
