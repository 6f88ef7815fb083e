"""Uploads: streamed, bounded, whole or not there at all."""

from __future__ import annotations

import errno
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import pytest
from sqlalchemy import event, func, select

from services.gateway.tables import files
from shared.contracts.artifacts import ArtifactKind
from shared.db import open_database
from shared.store.port import StoreFull
from tests.ground import Ground
from tests.integration.gateway_world import KEY, GatewayWorld, Running
from tests.waiting import eventually


@pytest.fixture
def world(tmp_path: Path, ground: Ground) -> Iterator[GatewayWorld]:
    world = GatewayWorld(tmp_path, ground, max_upload_bytes=4 * 2**20)
    yield world
    world.close()


@pytest.fixture
def here(world: GatewayWorld) -> Iterator[Running]:
    with world.gateway() as running:
        yield running


def post(here: Running, data: bytes, name: str = "a.txt", purpose: str = "user_data", **headers: str) -> httpx.Response:
    return here.http.post("/v1/files", files={"file": (name, data)}, data={"purpose": purpose}, headers=headers)


def staged(world: GatewayWorld) -> list[str]:
    return [found.key for found in world.store.list("staging/uploads/")]


@pytest.mark.parametrize("ground", ["memory"], indirect=True)  # an upload under way is only seen in a folder
def test_an_upload_cut_in_the_middle_leaves_nothing(world: GatewayWorld, here: Running) -> None:
    host, port = here.url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 3000000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        '--b\r\nContent-Disposition: form-data; name="file"; filename="big.bin"\r\n\r\n'
    )
    temporary = world.settings.home / "objects" / ".tmp"
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head.encode() + b"x" * 2_000_000)
        eventually(lambda: any(temporary.glob("*")), what="an upload under way")
    eventually(lambda: not any(temporary.glob("*")), what="nothing left of it")
    assert staged(world) == []
    assert here.http.get("/v1/files").json()["data"] == []


def test_a_body_without_its_last_boundary_is_refused_and_leaves_nothing(world: GatewayWorld, here: Running) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nxxxx'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = here.http.post("/v1/files", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "upload_cut_off")
    assert staged(world) == []


def test_two_uploads_of_one_name_at_once_are_two_files(here: Running) -> None:
    answers: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda data=data: answers.append(post(here, data).json())) for data in (b"1", b"2")
    ]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one["id"] for one in answers}) == 2
    contents = {here.http.get(f"/v1/files/{one['id']}/content").content for one in answers}
    assert contents == {b"1", b"2"}


def test_a_file_over_the_limit_is_413_however_it_comes(world: GatewayWorld, here: Running) -> None:
    assert post(here, b"x" * (5 * 2**20)).status_code == 413
    assert staged(world) == []


def test_an_upload_that_announces_more_than_the_limit_is_refused_before_it_comes(here: Running) -> None:
    host, port = here.url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 20000000000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(head.encode())
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_full_disk_is_507_and_leaves_nothing(world: GatewayWorld, here: Running, monkeypatch: Any) -> None:
    @contextmanager
    def full(key: str) -> Iterator[BinaryIO]:
        raise StoreFull(f"no room is left for {key}: {errno.errorcode[errno.ENOSPC]}")
        yield

    monkeypatch.setattr(world.store, "writer", full)
    answer = post(here, b"data")
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "store_full")
    assert here.http.get("/v1/files").json()["data"] == []


def test_a_database_without_room_is_507_and_works_again_with_room(tmp_path: Path) -> None:
    world = GatewayWorld(tmp_path)
    large = {"type": "probe", "params": {"log_line": "x" * 100_000}}
    with world.gateway() as here:
        engine = here.app.state.gateway.view.jobs._engine

        def bound(connection: Any, *_: object) -> None:
            connection.execute("PRAGMA max_page_count = 1")  # as large as it is, and no larger

        def unbound(connection: Any, *_: object) -> None:
            connection.execute("PRAGMA max_page_count = 1000000")

        event.listen(engine, "checkout", bound)
        for answer in [here.http.post("/v1/jobs", json=large) for _ in range(5)]:
            assert answer.status_code in (202, 507), answer.text
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("insufficient_storage", "disk_full")
        assert error["message"].startswith(f"The disk of {tmp_path} is full")
        event.remove(engine, "checkout", bound)
        event.listen(engine, "checkout", unbound)
        assert here.http.post("/v1/jobs", json=large).status_code == 202
    world.close()


def test_a_gateway_whose_disk_is_full_is_not_ready(tmp_path: Path, monkeypatch: Any) -> None:
    world = GatewayWorld(tmp_path)
    with world.gateway() as here:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5))
        answer = here.http.get("/readyz")
        assert (answer.status_code, list(answer.json()["missing"])) == (503, ["disk"])
        assert str(tmp_path) in answer.json()["missing"]["disk"]
    world.close()


def test_the_same_upload_retried_by_an_sdk_is_one_file(world: GatewayWorld, here: Running) -> None:
    first = post(here, b"data").json()
    again = post(here, b"data", **{"x-stainless-retry-count": "1"}).json()
    other = post(here, b"data").json()
    assert again["id"] == first["id"] != other["id"]
    assert not [key for key in staged(world) if first["id"] not in key and other["id"] not in key]


def test_the_registrys_refusal_is_the_files_status(world: GatewayWorld, here: Running) -> None:
    world.registry.refuse = "the files do not match their manifest"
    refused = post(here, b"data").json()
    assert (refused["status"], refused["status_details"]) == ("error", "the files do not match their manifest")
    answer = here.http.post("/v1/jobs", json={"type": "probe", "inputs": {"data": refused["id"]}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "inputs.data")


def file_rows(world: GatewayWorld) -> int:
    with open_database(world.settings.effective_db_url("gateway")).connect() as sql:
        return sql.execute(select(func.count()).select_from(files)).scalar_one()


def test_a_refused_file_that_is_deleted_leaves_no_row(world: GatewayWorld, here: Running) -> None:
    world.registry.refuse = "it is broken"
    before = file_rows(world)
    refused = post(here, b"data").json()
    assert file_rows(world) == before + 1
    assert here.http.delete(f"/v1/files/{refused['id']}").json()["deleted"]
    assert file_rows(world) == before
    assert here.http.get(f"/v1/files/{refused['id']}").status_code == 404


def test_a_file_that_is_deleted_before_it_is_refused_leaves_no_row(
    world: GatewayWorld, here: Running, monkeypatch: Any
) -> None:
    monkeypatch.setattr("services.gateway.files.REGISTRATION_S", 0.1)
    before = file_rows(world)
    world.registry.refuse = "it is broken"
    with world.registry.held():
        file = post(here, b"data").json()
        assert file["status"] == "uploaded"
        assert here.http.delete(f"/v1/files/{file['id']}").json()["deleted"]
        assert file_rows(world) == before + 1
    eventually(lambda: file_rows(world) == before)


def test_a_file_that_the_registry_has_not_seen_yet_is_409_for_a_job(world: GatewayWorld, monkeypatch: Any) -> None:
    monkeypatch.setattr("services.gateway.files.REGISTRATION_S", 0.1)
    monkeypatch.setattr(world.registry, "_do", lambda command: None)
    monkeypatch.setattr(world.bus, "publish", lambda *args: None)
    with world.gateway() as here:
        file = post(here, b"data").json()
        assert file["status"] == "uploaded"
        assert here.http.get(f"/v1/files/{file['id']}").json()["status"] == "uploaded"
        answer = here.http.post("/v1/jobs", json={"type": "probe", "inputs": {"data": file["id"]}})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "file_not_processed")


def test_ranges_of_a_file(here: Running) -> None:
    file_id = post(here, b"0123456789").json()["id"]

    def part(asked: str) -> tuple[int, bytes]:
        answer = here.http.get(f"/v1/files/{file_id}/content", headers={"Range": asked})
        return answer.status_code, answer.content

    assert part("bytes=2-4") == (206, b"234")
    assert part("bytes=7-") == (206, b"789")
    assert part("bytes=-2") == (206, b"89")
    assert part("bytes=20-")[0] == 416
    assert part("lines=1-2") == (200, b"0123456789")


def test_a_tenant_has_a_limit_of_storage(tmp_path: Path, ground: Ground) -> None:
    world = GatewayWorld(tmp_path, ground, max_storage_bytes=1000)
    world.registry.put("big", ArtifactKind.model, {"a.safetensors": b"x" * 900})
    with world.gateway() as here:
        eventually(lambda: here.http.get("/v1/artifacts/big").status_code == 200)
        assert post(here, b"x" * 500).json()["error"]["code"] == "storage_limit"
    world.close()


@pytest.mark.parametrize(
    ("name", "data", "purpose", "param", "code"),
    [
        ("a.jsonl", b"", "fine-tune", "file", "empty_file"),
        ("a.jsonl", b'{"a": 1\n', "fine-tune", "file", "invalid_jsonl"),
        ("a.jsonl", b"[1]\n", "fine-tune", "file", "invalid_jsonl"),
        ("a.jsonl", b'{"a": NaN}\n', "fine-tune", "file", "invalid_jsonl"),
        ("a.jsonl", b'{"a": "\xff"}\n', "fine-tune", "file", "not_utf8"),
        ("a.jsonl", b"{}\n", "nonsense", "purpose", "invalid_value"),
        ("a.txt", b"\xff\xfe", "fine-tune", "file", "not_utf8"),
    ],
)
def test_what_can_never_be_used_is_refused_at_once(
    world: GatewayWorld, here: Running, name: str, data: bytes, purpose: str, param: str, code: str
) -> None:
    answer = post(here, data, name, purpose)
    assert answer.status_code == 400, answer.text
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (param, code)
    assert staged(world) == []


def test_names_of_files_do_no_harm(here: Running) -> None:
    for name in ("../../etc/passwd", "späß 你好.txt", ".hidden", 'a"b;c.txt', "x" * 500):
        file = post(here, b"data", name).json()
        assert "/" not in file["filename"]
        content = here.http.get(f"/v1/files/{file['id']}/content")
        assert (content.status_code, content.content) == (200, b"data")
