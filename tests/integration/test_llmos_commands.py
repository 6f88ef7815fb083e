"""The `llmos` command against a real gateway: every word it reads is there, and scripts can rely on it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
import typer

from llmos.cli import main
from llmos.cli.app import app
from shared.contracts.artifacts import ArtifactKind, ArtifactPin
from shared.contracts.deployments import ReplicaState, ReplicaStatus
from shared.contracts.jobs import Failure, FailureReason, JobStatus, LogLines, Progress
from shared.contracts.nodes import Capacity, NodeHeartbeat, Role, node_key
from shared.contracts.topics import DEPLOYMENTS_STATUS, JOBS_LOGS, NODES_HEARTBEATS
from shared.readiness import NotReady
from tests.ground import Ground
from tests.integration.gateway_world import KEY, GatewayWorld, Running
from tests.waiting import eventually

BRACKETS = "[/red] is [bold]no markup"


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return orjson.loads(self.out)


Llmos = Callable[..., Done]


@pytest.fixture(scope="module")
def world(lasting_ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayWorld]:
    world = GatewayWorld(tmp_path_factory.mktemp("gateway"), lasting_ground)
    yield world
    world.close()


@pytest.fixture(scope="module")
def here(world: GatewayWorld) -> Iterator[Running]:
    with world.gateway() as running:
        yield running


@pytest.fixture
def llmos(here: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Llmos:
    """One command in this process; returns its exit code and what it printed."""
    monkeypatch.setenv("COLUMNS", "400")

    def command(*arguments: str, url: str = here.url, key: str = KEY) -> Done:
        monkeypatch.setattr(sys, "argv", ["llmos", "--url", url, "--key", key, *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)

    return command


def put(world: GatewayWorld, here: Running, name: str, kind: ArtifactKind = ArtifactKind.model) -> ArtifactPin:
    pin = world.registry.put(
        name, kind, {"config.json": b"{}"}, metadata={"note": BRACKETS, "tags": ["a", None, True]}, parents=["before@1"]
    )
    eventually(lambda: here.http.get(f"/v1/artifacts/{pin.ref}").status_code == 200)
    return pin


def ended(world: GatewayWorld, here: Running, job_id: str, status: JobStatus, **changes: Any) -> None:
    world.scheduler.move(job_id, status, **changes)
    eventually(lambda: here.job(job_id)["status"] == status)


def test_a_job_from_its_submission_to_its_log(world: GatewayWorld, here: Running, llmos: Llmos) -> None:
    options = ("--name", BRACKETS, "-p", "steps=2", "-r", "cpus=2", "--label", "team=a", "--json")
    job = llmos("jobs", "submit", "probe", *options).json
    assert job["params"]["steps"] == 2
    assert (job["resources"]["cpus"], job["labels"]) == (2, {"team": "a"})
    listed = llmos("jobs", "list")
    assert job["id"] in listed.out
    assert BRACKETS in listed.out
    world.scheduler.start(job["id"])
    words = {"job_id": job["id"], "attempt": 1, "run_id": "run-a"}
    world.bus.publish(JOBS_LOGS, job["id"], Progress(step=1, total_steps=2, tokens=9, percent=50.0, **words))
    world.bus.publish(JOBS_LOGS, job["id"], LogLines(lines=["one\x1b[2J", BRACKETS], **words))
    eventually(lambda: here.job(job["id"])["progress"])
    assert "done: 50%" in llmos("jobs", "get", job["id"]).out
    eventually(lambda: llmos("jobs", "logs", job["id"]).out == f"one\\x1b[2J\n{BRACKETS}\n")
    assert llmos("jobs", "logs", job["id"], "--json").json["data"]["lines"] == ["one\x1b[2J", BRACKETS]
    assert llmos("jobs", "cancel", job["id"]).out == f"{job['id']} will be cancelled\n"
    eventually(lambda: world.scheduler.steered)
    ended(world, here, job["id"], JobStatus.cancelled, metrics={"loss": 1.5}, reason="cancelled")
    assert "loss 1.5" in llmos("jobs", "get", job["id"]).out
    assert llmos("jobs", "get", job["id"]).out.splitlines()[0].split() == [job["id"], "probe", "cancelled"]
    assert llmos("jobs", "logs", "-f", job["id"]).out == f"one\\x1b[2J\n{BRACKETS}\n"


def test_watching_ends_with_the_jobs_own_end(world: GatewayWorld, here: Running, llmos: Llmos) -> None:
    good, bad = here.submit(), here.submit()
    ended(world, here, good, JobStatus.succeeded, outputs=[ArtifactPin.model_validate(PIN)])
    failure = Failure(reason=FailureReason.crashed, message=BRACKETS, hint="Try [this].", log_tail=["[last]"])
    ended(world, here, bad, JobStatus.failed, failure=failure)
    done = llmos("jobs", "watch", good)
    assert done.code == 0
    assert "published made@1 (report)" in done.out
    failed = llmos("jobs", "watch", bad)
    assert failed.code == 1
    assert BRACKETS in failed.err
    assert "Try [this]." in failed.out
    assert "[last]" in failed.out
    assert llmos("jobs", "watch", bad, "--json").json["failure"]["message"] == BRACKETS


PIN = {"tenant": "default", "name": "made", "version": 1, "kind": "report", "manifest_key": "k"}


def test_a_retry_is_a_job_of_its_own(world: GatewayWorld, here: Running, llmos: Llmos) -> None:
    first = here.submit()
    assert llmos("jobs", "retry", first).code == 5
    ended(world, here, first, JobStatus.failed)
    again = llmos("jobs", "retry", first, "--json").json
    assert again["retry_of"] == first


def test_models_are_found_behind_any_number_of_files(
    world: GatewayWorld, here: Running, llmos: Llmos, tmp_path: Path
) -> None:
    for number in range(101):
        world.registry.put(f"file-{number:03}", ArtifactKind.file, {"data": b"x"})
    pin = put(world, here, "zebra")
    put(world, here, "zebra")
    assert "zebra" in [item["name"] for item in llmos("models", "list", "--json").json["data"]]
    assert len(llmos("models", "list", "--kind", "file", "--json").json["data"]) >= 101
    assert llmos("models", "alias", pin.ref, "production").code == 0
    eventually(lambda: "production→1" in llmos("models", "list").out)
    told = llmos("models", "get", pin.ref).out
    assert "made from before@1" in told
    assert f"note: {BRACKETS}" in told
    assert "config.json" in told
    assert 'tags: ["a",null,true]' in told
    tar = tmp_path / "zebra.tar"
    assert llmos("models", "download", pin.ref, "-o", str(tar), "--json").json["path"] == str(tar)
    assert tar.stat().st_size > 0
    assert llmos("models", "download", pin.ref, "-o", str(tar)).code == 2
    assert llmos("models", "download", pin.ref, "-o", str(tar), "--force").code == 0
    assert llmos("models", "delete", pin.ref, "--yes").code == 0
    eventually(lambda: llmos("models", "get", pin.ref).code == 3)


def test_a_file_comes_back_as_it_went(llmos: Llmos, tmp_path: Path) -> None:
    data = tmp_path / "chats.jsonl"
    data.write_bytes(b'{"prompt": "a", "completion": "b"}\n')
    file_id = llmos("files", "upload", str(data), "--json").json["id"]
    assert "chats.jsonl" in llmos("files", "list").out
    assert file_id in llmos("files", "get", file_id).out
    back = tmp_path / "back.jsonl"
    assert llmos("files", "download", file_id, "-o", str(back)).code == 0
    assert back.read_bytes() == data.read_bytes()
    assert llmos("files", "download", file_id, "-o", "-").out == data.read_text()
    full = llmos("files", "download", file_id, "-o", "/dev/full")
    assert (full.code, full.err) == (1, "llmos: /dev/full: No space left on device\n")
    assert Path("/dev/full").is_char_device()
    assert llmos("files", "delete", file_id).code == 0
    gone = llmos("files", "get", file_id)
    assert gone.code == 3
    assert "Error code" not in gone.err


def test_status_says_what_is_missing_and_why(here: Running, llmos: Llmos, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "missing" not in llmos("status").out
    assert llmos("status", "--json").json["missing"] == {}

    def bus() -> None:
        raise NotReady("no Kafka broker answers at kafka:9092")

    monkeypatch.setattr(here.app.state.readiness, "_checks", {"bus": bus})
    assert "missing: bus: no Kafka broker answers at kafka:9092\n" in llmos("status").out
    assert llmos("status", "--json").json["missing"] == {"bus": "no Kafka broker answers at kafka:9092"}
    assert "no nodes" in llmos("status").out
    monkeypatch.setattr(here.app.state.readiness, "_checks", {"view": bus})
    told = llmos("status").out
    assert "no nodes" not in told
    assert "not known yet" in told


def test_a_deployment_and_the_node_it_runs_on(world: GatewayWorld, here: Running, llmos: Llmos) -> None:
    put(world, here, "served")
    made = llmos("deploy", "served", "--no-wait", "-e", "max_model_len=64", "--no-auto-adapters", "--json").json
    assert (made["engine_args"], made["auto_adapters"], made["replicas"]) == ({"max_model_len": 64}, False, 1)
    late = llmos("deploy", "served", "--timeout", "0")
    assert late.code == 1
    assert "served is not ready after 0 s" in late.err
    status = ReplicaStatus(
        tenant="default",
        replica_id="r1",
        deployment="served",
        node="n1",
        state=ReplicaState.failed,
        reason=BRACKETS,
        model="served@1",
        boot_id="b",
        seq=1,
    )
    world.scheduler.seat("served", "r1", "n1")
    world.bus.publish(DEPLOYMENTS_STATUS, "r1", status)
    capacity = Capacity(cpus=2, memory_bytes=2**31, devices=[], slots=1)
    heartbeat = NodeHeartbeat(node="n1", role=Role.inference, boot_id="b", capacity=capacity, replicas=["r1"], seq=1)
    world.bus.publish(NODES_HEARTBEATS, node_key("n1", Role.inference), heartbeat)
    eventually(lambda: "n1" in llmos("nodes").out)
    eventually(lambda: BRACKETS in llmos("status").out)
    assert llmos("status", "--json").json["deployments"][0]["status"] == "starting"
    world.scheduler.give_up("served", "r1", "n1", BRACKETS)
    eventually(lambda: llmos("status", "--json").json["deployments"][0]["status"] == "failed")
    assert BRACKETS in llmos("status").out
    failed = llmos("deploy", "served")
    assert failed.code == 1
    assert BRACKETS in failed.out
    assert llmos("scale", "served", "0").code == 0
    assert llmos("scale", "served", "0", "--json").json["replicas"] == 0
    assert llmos("undeploy", "served").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("jobs", "get", "job-none"), 3, "job-none"),
        (("chat", "no-such-model", "hello"), 3, "no-such-model"),
        (("jobs", "submit", "no-such-type"), 2, "no-such-type"),
        (("jobs", "submit", "probe", "-p", "steps"), 2, "NAME=VALUE"),
        (("jobs", "submit", "probe", "-p", "steps=-1"), 2, "steps"),
        (("jobs", "submit", "probe", "--params-file", "/nope.json"), 2, "/nope.json"),
        (("jobs", "list", "--status", "banana"), 2, "status"),
        (("models", "alias", "name", "production"), 2, "names no version"),
        (("models", "list", "--kind", "banana"), 2, "kind"),
        (("models", "download", "no-such-model@1"), 3, "no-such-model"),
        (("models", "download", "m@1", "-o", "/nope/x.tar"), 2, "there is no folder /nope"),
        (("down", "--timeout", "-5"), 2, "timeout"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_a_code(
    llmos: Llmos, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = llmos(*arguments)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert "Traceback" not in done.err
    assert "Error code" not in done.err


@pytest.mark.parametrize("arguments", [("status",), ("files", "list"), ("chat", "m", "hello")])
def test_a_gateway_that_is_not_there_is_code_4(llmos: Llmos, arguments: tuple[str, ...]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"  # bound, and nobody listens
        done = llmos(*arguments, url=url)
    assert done.code == 4
    assert f"nothing answers at {url}" in done.err


def test_where_nothing_runs_is_code_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    for name in ("LLMOS_API_KEY", "LLMOS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["llmos", "--home", str(tmp_path / "fresh"), "status"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 4
    assert f"nothing runs on {tmp_path / 'fresh'}: `llmos up` starts it" in capfd.readouterr().err


def test_an_address_that_is_none_is_wrong_use(llmos: Llmos) -> None:
    done = llmos("status", url="nonsense")
    assert done.code == 2
    assert "'nonsense' is no address" in done.err


@pytest.mark.parametrize("what", ["files", "models"])
def test_a_list_can_be_read_in_parts(world: GatewayWorld, here: Running, llmos: Llmos, what: str) -> None:
    for number in range(3):
        put(world, here, f"part-{number}")
        here.upload()
    whole = llmos(what, "list", "--json").json
    assert (whole["object"], whole["has_more"]) == ("list", False)
    ids = [item["id"] for item in whole["data"]]
    assert len(ids) >= 3
    cut = 1 + next(number for number, id_ in enumerate(ids) if id_ == "part-0" or len(id_) > len("file-000"))
    start = llmos(what, "list", "--limit", str(cut), "--json").json
    assert ([item["id"] for item in start["data"]], start["has_more"]) == (ids[:cut], True)
    rest = llmos(what, "list", "--after", ids[cut - 1], "--json").json
    assert ([item["id"] for item in rest["data"]], rest["has_more"]) == (ids[cut:], False)
    assert f"more: --after {ids[cut - 1]}" in llmos(what, "list", "--limit", str(cut)).out


@pytest.mark.parametrize("command", [("files", "list"), ("jobs", "list"), ("nodes",), ("config",), ("models", "list")])
def test_every_list_has_one_shape(llmos: Llmos, command: tuple[str, ...]) -> None:
    value = llmos(*command, "--json").json
    assert value["object"] == "list"
    assert isinstance(value["data"], list)


def test_a_wrong_key_is_a_sentence(llmos: Llmos) -> None:
    done = llmos("status", key="sk-wrong")
    assert done.code == 1
    assert "key" in done.err


def test_every_command_speaks_json() -> None:
    def silent(command: Any, path: tuple[str, ...]) -> Iterator[str]:
        for name, child in getattr(command, "commands", {}).items():
            yield from silent(child, (*path, name))
        if not hasattr(command, "commands") and "--json" not in [o for p in command.params for o in p.opts]:
            yield " ".join(path)

    assert list(silent(typer.main.get_command(app), ())) == []
