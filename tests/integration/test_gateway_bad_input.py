"""Bad input: one clear sentence, the field's name, never a 500."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from shared.contracts.artifacts import ArtifactKind
from tests.ground import Ground
from tests.integration.gateway_world import GatewayWorld, Running
from tests.waiting import eventually

JOBS, TUNING, DEPLOYMENTS = "/v1/jobs", "/v1/fine_tuning/jobs", "/v1/deployments"
IMPORT = {"type": "import", "params": {"source": "/models/a"}}
DEEP = b'{"type": "probe", "params": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"


@pytest.fixture(scope="module")
def world(lasting_ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayWorld]:
    folder = tmp_path_factory.mktemp("gateway")
    world = GatewayWorld(folder, lasting_ground, allow_hub=False, max_body_bytes=100_000)
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
        (JOBS, {"type": "probe", "name": "a\0b"}, 400, "name", "invalid_value"),
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
        (DEPLOYMENTS, {"model": "base", "engine_args": {"a": 2**70}}, 400, "engine_args.a", "invalid_value"),
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
        (b"\xff\xfe", 400, "invalid_utf8"),
        (b'{"type": "probe", "name": "\xff"}', 400, "invalid_utf8"),
        (DEEP, 400, "invalid_value"),
        (b"[" * 90_000, 400, "invalid_value"),
        (b"null", 400, "missing_body"),
        (b'"probe"', 400, "invalid_value"),
        (b'{"name": "' + b"x" * 200_000 + b'"}', 413, "body_too_large"),
    ],
)
def test_a_broken_body_is_refused(here: Running, body: bytes, status: int, code: str | None) -> None:
    answer = here.http.post(JOBS, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == code
    assert "parsing the body" not in answer.text


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"NaN", "NaN and Infinity"),
        (b"-Infinity", "NaN and Infinity"),
        (b"1e999", "NaN and Infinity"),
        (b"9" * 5000, "64 bits"),
        (b"-9223372036854775809", "64 bits"),
        (b'"\\ud800"', "surrogate"),
        (b'"a\\u0000b"', "NUL"),
        (b"[" * 40 + b"]" * 40, "32 levels"),
    ],
)
def test_a_value_that_cannot_be_kept_is_named_by_its_place(here: Running, value: bytes, says: str) -> None:
    body = b'{"type": "probe", "params": {"log_line": {"a": [0, %s]}}}' % value
    error = here.http.post(JOBS, content=body).json()["error"]
    place = "params" if b"[[" in value else "params.log_line.a.1"
    assert (error["param"], error["code"]) == (place, "invalid_value"), error
    assert error["message"].startswith(f"{place}: ")
    assert says in error["message"]


def test_a_message_is_a_sentence_without_the_checkers_own_words(here: Running) -> None:
    for path, body in [
        (JOBS, {"type": "pretrain", "params": {"hidden_size": 30, "heads": 4}}),
        (JOBS, {"type": "probe", "output": "a b"}),
        (JOBS, [1]),
        (TUNING, {"model": "base", "training_file": "f", "suffix": "a/b"}),
    ]:
        message = here.http.post(path, json=body).json()["error"]["message"]
        for word in ("Value error", "dictionary", "pattern", "[A-Za"):
            assert word not in message, message


@pytest.mark.parametrize(
    ("path", "body", "resources", "param"),
    [
        (JOBS, {"type": "probe"}, {"ranks_per_node": 0}, "ranks_per_node"),
        (JOBS, {"type": "probe"}, {"devices": 4, "ranks_per_node": 2}, "ranks_per_node"),
        (JOBS, IMPORT, {"nodes": 2}, "nodes"),
        (JOBS, IMPORT, {"devices": 2}, "devices"),
        (JOBS, IMPORT, {"ranks_per_node": 2}, "ranks_per_node"),
        (DEPLOYMENTS, {"model": "base"}, {"nodes": 2}, "nodes"),
        (DEPLOYMENTS, {"model": "base"}, {"ranks_per_node": 2}, "ranks_per_node"),
    ],
)
def test_ranks_that_cannot_be_are_refused(here: Running, path: str, body: Any, resources: Any, param: str) -> None:
    check(here.http.post(path, json={**body, "resources": resources}), 400, f"resources.{param}", "invalid_value")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (JOBS, {"type": "probe", "priority": True}, "priority"),
        (JOBS, {"type": "probe", "params": {"steps": True}}, "params.steps"),
        (JOBS, {"type": "probe", "params": {"step_s": False}}, "params.step_s"),
        (JOBS, {"type": "probe", "resources": {"nodes": True}}, "resources.nodes"),
        (JOBS, {"type": "sft", "params": {"batch_size": True}}, "params.batch_size"),
        (TUNING, {"model": "base", "training_file": "f", "seed": True}, "seed"),
        (DEPLOYMENTS, {"model": "base", "replicas": True}, "replicas"),
    ],
)
def test_true_is_not_taken_as_the_number_one(here: Running, path: str, body: Any, param: str) -> None:
    check(here.http.post(path, json=body), 400, param, "invalid_value")


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\nb", "a\x07", "\u202egpj.exe", "a\u2066b", "a\x9bb"])
def test_names_that_would_show_as_something_else_are_refused(here: Running, name: str) -> None:
    tuning = {"model": "base", "training_file": "f"}
    for path, body, param in [
        (JOBS, {"type": "probe", "name": name}, "name"),
        (JOBS, {"type": "probe", "labels": {name: "a"}}, f"labels.{name}"),
        (JOBS, {"type": "probe", "labels": {"a": name}}, "labels.a"),
        (TUNING, {**tuning, "suffix": name}, "suffix"),
        (TUNING, {**tuning, "metadata": {"a": name}}, "metadata.a"),
    ]:
        answer = here.http.post(path, json=body)
        check(answer, 400, param, "invalid_value")
        assert name not in answer.json()["error"]["message"].replace(param, "")


def test_names_of_all_languages_are_taken(here: Running) -> None:
    name = "Prüfung 你好 \u05e9\u05dc\u05d5\u05dd 👩‍🔬"
    assert here.job(here.submit(name=name, labels={name: name}))["labels"] == {name: name}


@pytest.mark.parametrize("filename", ["a\x1b[31m.txt", "\u202etxt.exe", "a\x7fb", "a\x85b"])
def test_filenames_that_would_show_as_something_else_are_refused(here: Running, filename: str) -> None:
    answer = here.http.post("/v1/files", data={"purpose": "user_data"}, files={"file": (filename, b"x")})
    check(answer, 400, "file", "invalid_value")
    assert here.http.get("/v1/files").json()["data"] == []


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/files", "/v1/fine_tuning/jobs", "/v1/artifacts", "/v1/deployments"])
def test_a_cursor_that_no_page_gave_is_named(here: Running, path: str) -> None:
    for wrong in ("no cursor!", "base@1", "job-1 "):
        check(here.http.get(path, params={"after": wrong}), 400, "after", "invalid_cursor")
    assert here.http.get(path, params={"after": ""}).status_code == 200


def test_a_cursor_of_another_list_is_named(here: Running) -> None:
    job_id = here.submit()
    check(here.http.get("/v1/files", params={"after": job_id}), 400, "after", "invalid_cursor")
    tuned = here.http.post(TUNING, json={"model": "base", "training_file": here.upload()}).json()["id"]
    for words in ("events", "checkpoints"):
        answer = here.http.get(f"{TUNING}/{tuned}/{words}", params={"after": "garbage"})
        check(answer, 400, "after", "invalid_cursor")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs",
        "/v1/files",
        "/v1/fine_tuning/jobs",
        "/v1/models",
        "/v1/artifacts",
        "/v1/artifacts/base",
        "/v1/deployments",
        "/v1/nodes",
        "/api/models",
    ],
)
def test_an_unknown_query_parameter_is_named(here: Running, path: str) -> None:
    check(here.http.get(path, params={"banana": "1"}), 400, "banana", "unknown_parameter")


def test_a_wrong_filter_is_named_and_what_is_right_with_it(here: Running) -> None:
    check(here.http.get("/v1/files?purpose=banana"), 400, "purpose", "invalid_value")
    assert here.http.get("/v1/files?purpose=fine-tune-results").json()["data"] == []
    check(here.http.get("/v1/jobs?status=queued&status=nope"), 400, "status", "invalid_value")
    check(here.http.get("/v1/artifacts?kind=nope"), 400, "kind", "invalid_value")


def test_refusals_name_things_in_grammatical_sentences(here: Running) -> None:
    def message(path: str, **body: Any) -> str:
        return str(here.http.post(path, json=body).json()["error"]["message"])

    assert message(DEPLOYMENTS, model="lora") == "'lora' is an adapter; a model is needed here."
    assert "is a model; a dataset or a file is needed" in message(JOBS, type="probe", inputs={"data": "base"})
    assert message(JOBS, type="probe", inputs={"data": "file-x"}) == "There is no file 'file-x'."
    assert message(JOBS, type="probe", inputs={"data": ""}).startswith("'' names no artifact")


def test_a_member_of_a_union_is_not_part_of_a_fields_name(here: Running) -> None:
    answer = here.http.post(JOBS, json={"type": "sft", "params": {"batch_size": "x"}})
    check(answer, 400, "params.batch_size", "invalid_value")


def test_a_base_model_is_named_once(here: Running) -> None:
    wanted = {"model": "base", "training_file": here.upload(), "params": {"base_model": "own/er"}}
    check(here.http.post(TUNING, json=wanted), 400, "params.base_model", "invalid_value")


def test_a_body_without_a_length_is_bounded_as_well(here: Running) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(50):
            yield b" " * 10_000

    check(here.http.post(JOBS, content=endless()), 413, None, "body_too_large")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "nonsense", None])
def test_json_is_taken_whatever_its_content_type_says(here: Running, content_type: str | None) -> None:
    """`curl -d` calls it a form."""
    headers = {"Content-Type": content_type} if content_type else {}
    answer = here.http.post(JOBS, content=b'{"type": "probe"}', headers=headers)
    assert answer.status_code == 202, answer.text


def test_what_is_no_json_is_refused_whatever_its_content_type_says(here: Running) -> None:
    check(here.http.post(JOBS, data={"type": "probe"}), 400, None, "invalid_json")
    check(here.http.post(JOBS, files={"file": b"x"}), 400, None, "invalid_json")


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
    expiring = {"purpose": "user_data", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    check(here.http.post("/v1/files", data=expiring, files={"file": b"x"}), 400, "expires_after", "unsupported")
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    check(here.http.post("/v1/files", content=b"garbage", headers=headers), 400, None, "invalid_multipart")
