"""The node agent with real replica processes of the echo engine; requests over a real Valkey, or Kafka."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from services.inference import keeper
from services.inference.leftovers import Leftovers
from shared.contracts.artifacts import ArtifactKind, ArtifactPin
from shared.contracts.deployments import DeploymentSpec, ReplicaState, ReplicaStatus
from shared.contracts.inference import FrameKind, Refusal
from shared.contracts.nodes import Role
from shared.contracts.topics import DEPLOYMENTS_STATUS
from shared.node_name import NodeName
from shared.settings import Settings
from shared.store.port import ObjectStore
from tests.ground import Ground
from tests.integration.inference_node import Desk, register, running_agent, text_of
from tests.servers import ValkeyServer, valkey
from tests.waiting import aeventually

CHAT: dict[str, Any] = {"model": "tiny@1", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with valkey(durable=False) as started:
        yield started


@pytest.fixture
def settings(tmp_path: Path, server: ValkeyServer, ground: Ground) -> Settings:
    return Settings(
        home=tmp_path,
        node="n1",
        redis_url=server.unix_url,
        requests_url=ground.requests_url,
        heartbeat_s=0.5,
        drain_timeout_s=10,
        replica_max_crashes=2,
    )


@pytest.fixture
def store(ground: Ground) -> ObjectStore:
    return ground.store()


@pytest.fixture
async def calling(settings: Settings, store: ObjectStore, ground: Ground) -> AsyncIterator[Desk]:
    """A desk that no node listens to yet."""
    desk = Desk(ground.bus(), settings.redis_url, store, requests_url=settings.requests_url)
    await desk.open()
    yield desk
    await desk.close()


@pytest.fixture
async def desk(calling: Desk, settings: Settings, store: ObjectStore, ground: Ground) -> AsyncIterator[Desk]:
    """A desk at a node whose agent runs."""
    async with running_agent(settings, ground.bus(), store):
        yield calling


@pytest.fixture
def model(store: ObjectStore, tmp_path: Path) -> ArtifactPin:
    return artifact(store, tmp_path, "tiny", 1, ArtifactKind.model)


def artifact(store: ObjectStore, tmp_path: Path, name: str, version: int, kind: ArtifactKind) -> ArtifactPin:
    folder = tmp_path / "made" / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(f"{name} {version}".encode())
    return register(store, name, version, folder, kind)


def echo(model: ArtifactPin, **fields: Any) -> DeploymentSpec:
    args = fields.pop("args", {})
    return DeploymentSpec(model=model, engine="echo", engine_args=args, **fields)


async def test_a_deployment_becomes_ready_and_answers(desk: Desk, model: ArtifactPin) -> None:
    desk.want("chat", echo(model), "r1")
    status = await desk.until("r1", ReplicaState.ready)
    assert (status.model, status.max_model_len, status.deployment, status.node) == ("tiny@1", 4096, "chat", "n1")
    assert desk.watched.states("r1") == [ReplicaState.pulling, ReplicaState.loading, ReplicaState.ready]
    answer = await desk.answer(await desk.ask("r1", {**CHAT, "max_tokens": 3}))
    assert [frame.kind for frame in answer] == [FrameKind.start, FrameKind.end]
    assert json.loads(text_of(answer))["choices"][0]["message"]["content"] == "tiny@1: 0 1 2"
    await aeventually(lambda: desk.watched.heartbeats and desk.watched.heartbeats[-1].replicas == ["r1"])


async def test_a_crashed_replica_is_started_again(desk: Desk, model: ArtifactPin) -> None:
    desk.want("chat", echo(model, args={"crash_on": "die"}), "r1")
    first = await desk.until("r1", ReplicaState.ready)
    await desk.ask("r1", {**CHAT, "user": "die"})
    await aeventually(lambda: (last := desk.watched.last("r1")) and last.restarts == 1 and last.max_model_len)
    second = await desk.until("r1", ReplicaState.ready)
    assert second.boot_id != first.boot_id
    assert await desk.answer(await desk.ask("r1", CHAT))


async def test_a_replica_that_crashes_again_and_again_fails_with_its_reason(desk: Desk, model: ArtifactPin) -> None:
    desk.want("chat", echo(model, args={"crash_at_start": "no room for the KV cache"}), "r1")
    failed = await desk.until("r1", ReplicaState.failed)
    assert failed.reason == "ValueError: no room for the KV cache"
    assert failed.restarts == 1
    desk.want("chat", echo(model), "r1")
    await desk.until("r1", ReplicaState.ready)


async def test_an_engine_that_breaks_at_every_request_fails_with_its_reason_though_it_was_ready_between(
    desk: Desk, model: ArtifactPin
) -> None:
    desk.want("chat", echo(model, args={"break_on": "break"}), "r1")
    await desk.until("r1", ReplicaState.ready)
    refused = (await desk.answer(await desk.ask("r1", {**CHAT, "user": "break"})))[0]
    assert refused.kind is FrameKind.refused
    assert msgspec.msgpack.decode(refused.data, type=Refusal).broken
    await aeventually(lambda: (last := desk.watched.last("r1")) and last.restarts == 1 and last.max_model_len, 30)
    again = await desk.until("r1", ReplicaState.ready)
    assert again.reason == "started again after it failed: the echo engine was asked to break"
    await desk.ask("r1", {**CHAT, "user": "break"})
    assert (await desk.until("r1", ReplicaState.failed)).reason == "the echo engine was asked to break"


async def test_crashes_before_a_long_well_time_no_longer_count(
    desk: Desk, model: ArtifactPin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "WELL_AFTER_S", 0.1)
    desk.want("chat", echo(model, args={"break_on": "break"}), "r1")
    for restarts in range(3):
        wanted = (restarts, ReplicaState.ready, "")
        await aeventually(partial(stands, desk, wanted), 30)
        await desk.ask("r1", {**CHAT, "user": "break"})
    await aeventually(lambda: (last := desk.watched.last("r1")) and last.restarts == 3, 30)


async def test_a_model_that_breaks_the_engine_with_its_first_token_is_never_ready(
    desk: Desk, model: ArtifactPin
) -> None:
    desk.want("chat", echo(model, args={"break_on": '"max_tokens": 1}'}), "r1")
    failed = await desk.until("r1", ReplicaState.failed)
    assert "the echo engine was asked to break" in failed.reason
    assert ReplicaState.ready not in desk.watched.states("r1")
    assert failed.restarts == 0


async def test_an_unknown_engine_argument_fails_at_once_and_is_named(desk: Desk, model: ArtifactPin) -> None:
    desk.want("chat", echo(model, args={"tokenz": 3}), "r1")
    failed = await desk.until("r1", ReplicaState.failed)
    assert "tokenz" in failed.reason
    assert failed.restarts == 0


async def test_a_model_that_is_not_in_the_store_fails_with_its_name(desk: Desk) -> None:
    pin = ArtifactPin(name="ghost", version=7, kind=ArtifactKind.model, manifest_key="manifests/default/ghost/7.json")
    desk.want("chat", echo(pin), "r1")
    assert "ghost@7" in (await desk.until("r1", ReplicaState.failed)).reason


async def test_undeploying_drains_and_leaves_no_status(desk: Desk, model: ArtifactPin) -> None:
    desk.want("chat", echo(model, args={"delay_s": 0.05}), "r1")
    await desk.until("r1", ReplicaState.ready)
    request = await desk.ask("r1", {**CHAT, "max_tokens": 20, "stream": True})
    await aeventually(lambda: desk.seen(request))
    desk.want("chat", None)
    await desk.until("r1", ReplicaState.draining)
    late = await desk.answer(await desk.ask("r1", CHAT))
    assert late[0].kind is FrameKind.refused
    assert b"tiny@1: 0" in text_of(await desk.answer(request))
    await desk.gone("r1")
    assert replica_processes() == []


async def test_another_model_version_takes_the_place_of_the_old(
    desk: Desk, model: ArtifactPin, store: ObjectStore, tmp_path: Path
) -> None:
    desk.want("chat", echo(model), "r1")
    await desk.until("r1", ReplicaState.ready)
    desk.want("chat", echo(artifact(store, tmp_path, "tiny", 2, ArtifactKind.model)), "r1")
    await aeventually(lambda: (last := desk.watched.last("r1")) and last.model == "tiny@2" and last.max_model_len, 30)


async def test_adapters_come_and_go_without_a_restart(
    desk: Desk, model: ArtifactPin, store: ObjectStore, tmp_path: Path
) -> None:
    desk.want("chat", echo(model), "r1")
    boot = (await desk.until("r1", ReplicaState.ready)).boot_id
    adapter = artifact(store, tmp_path, "style", 1, ArtifactKind.adapter)
    missing = ArtifactPin(name="none", version=1, kind=ArtifactKind.adapter, manifest_key="manifests/default/none/1")
    desk.want("chat", echo(model, adapters=[adapter, missing]), "r1")
    await aeventually(lambda: (last := desk.watched.last("r1")) and last.adapters == ["style@1"], 10)
    await aeventually(lambda: (last := desk.watched.last("r1")) and "none@1" in last.failed_adapters, 10)
    answer = await desk.answer(await desk.ask("r1", {**CHAT, "model": "style@1"}))
    assert b"style@1: 0" in text_of(answer)
    desk.want("chat", echo(model), "r1")
    await aeventually(lambda: (last := desk.watched.last("r1")) and last.adapters == [], 10)
    gone = await desk.answer(await desk.ask("r1", {**CHAT, "model": "style@1"}))
    assert b"does not exist" in text_of(gone)
    last = desk.watched.last("r1")
    assert last is not None
    assert last.boot_id == boot


async def test_past_its_limit_a_replica_refuses_and_says_when_to_come_again(desk: Desk, model: ArtifactPin) -> None:
    desk.want("chat", echo(model, args={"hang_on": "wait"}, max_queue=2), "r1")
    await desk.until("r1", ReplicaState.ready)
    held = [await desk.ask("r1", {**CHAT, "user": "wait"}) for _ in range(2)]
    refused = (await desk.answer(await desk.ask("r1", CHAT)))[0]
    assert refused.kind is FrameKind.refused
    refusal = msgspec.msgpack.decode(refused.data, type=Refusal)
    assert (refusal.queue, refusal.retry_after_s > 0) == (2, True)
    await aeventually(lambda: (last := desk.watched.last("r1")) and last.load.running == 2)
    await desk.cancel("r1", held[0])
    await aeventually(lambda: (last := desk.watched.last("r1")) and last.load.running == 1)
    assert (await desk.answer(await desk.ask("r1", CHAT)))[-1].kind is FrameKind.end
    await desk.cancel("r1", held[1])


async def test_a_passed_deadline_ends_with_a_sentence(desk: Desk, model: ArtifactPin) -> None:
    desk.want("chat", echo(model, args={"hang_on": "wait"}), "r1")
    await desk.until("r1", ReplicaState.ready)
    answer = await desk.answer(await desk.ask("r1", {**CHAT, "user": "wait"}, timeout_ms=50))
    assert answer[-1].kind is FrameKind.failed
    assert "50 ms" in answer[-1].data.decode()
    await aeventually(lambda: (last := desk.watched.last("r1")) and last.load.running == 0)


async def test_a_replica_killed_with_its_requests_is_started_again(desk: Desk, model: ArtifactPin) -> None:
    desk.want("chat", echo(model), "r1")
    await desk.until("r1", ReplicaState.ready)
    os.kill(replica_processes()[0].pid, signal.SIGKILL)
    await aeventually(lambda: (last := desk.watched.last("r1")) and last.restarts == 1 and last.max_model_len, 30)


async def test_a_stopping_agent_ends_its_replicas_and_says_so(
    calling: Desk, settings: Settings, store: ObjectStore, ground: Ground, model: ArtifactPin
) -> None:
    desk = calling
    async with running_agent(settings, ground.bus(), store):
        desk.want("chat", echo(model), "r1")
        await desk.until("r1", ReplicaState.ready)
    await desk.until("r1", ReplicaState.stopped)
    await aeventually(lambda: desk.watched.heartbeats[-1].stopping)
    assert replica_processes() == []


async def test_an_agent_takes_back_what_an_earlier_one_of_its_node_said_though_its_disk_is_gone(
    calling: Desk, settings: Settings, store: ObjectStore, ground: Ground, model: ArtifactPin
) -> None:
    desk = calling
    for replica, node in (("ghost", "n1"), ("other", "n2"), ("r1", "n1")):
        said = ReplicaStatus(replica_id=replica, deployment="chat", node=node, state=ReplicaState.ready)
        desk.bus.publish(DEPLOYMENTS_STATUS, replica, said).result()
    desk.want("chat", echo(model), "r1")
    async with running_agent(settings, ground.bus(), store):
        await desk.gone("ghost")
        await aeventually(lambda: (last := desk.watched.last("r1")) and last.boot_id and last.max_model_len, 30)
    assert None not in desk.watched.statuses["other"] + desk.watched.statuses["r1"]


async def test_an_agent_clears_what_one_of_another_name_left_that_nobody_has(
    settings: Settings, store: ObjectStore, ground: Ground
) -> None:
    """As after a container was killed: the next one has another name and the same volume."""
    home = settings.home / "inference"
    left = Leftovers(home / "4f2e" / "replicas")
    with NodeName(home, "9b1c", Role.inference):
        Leftovers(home / "9b1c" / "replicas").note("r2")
        orphan = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
        try:
            left.note("r1", orphan.pid)
            async with running_agent(settings, ground.bus(), store):
                await aeventually(lambda: not (home / "4f2e").exists() and orphan.returncode is not None)
        finally:
            if orphan.returncode is None:
                orphan.kill()
            await orphan.wait()
        assert list((home / "9b1c" / "replicas").iterdir())


async def test_a_status_names_the_version_of_the_deployment_that_it_follows(desk: Desk, model: ArtifactPin) -> None:
    desk.want("chat", echo(model, args={"tokenz": 3}), "r1")
    assert (await desk.until("r1", ReplicaState.failed)).deployment_version == 1
    desk.want("chat", echo(model, args={"tokenz": 4}), "r1")
    await aeventually(
        lambda: (last := desk.watched.last("r1")) and last.state == "failed" and last.deployment_version == 2, 30
    )


def stands(desk: Desk, wanted: tuple[int, ReplicaState, str]) -> bool:
    """Whether `r1` has so many restarts, that state and that reason."""
    last = desk.watched.last("r1")
    return last is not None and (last.restarts, last.state, last.reason) == wanted


def replica_processes() -> list[psutil.Process]:
    """The replicas' processes that this test's agent has started."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "services.inference.replica" in " ".join(_command(child))]


def _command(process: psutil.Process) -> list[str]:
    try:
        title = process.cmdline()
    except psutil.Error:
        return []
    return ["services.inference.replica"] if title and title[0].startswith("llmos: replica") else title
