"""kill -9 of the agent, and the servers away: what must go on, and what must end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from shared.bus.valkey import ValkeyBus
from shared.contracts.artifacts import ArtifactKind
from shared.contracts.deployments import DeploymentSpec, ReplicaState
from shared.contracts.inference import FrameKind
from shared.settings import Settings
from shared.store.local import LocalStore
from shared.store.port import ObjectStore
from tests.ground import Ground
from tests.integration.inference_node import Desk, register, running_agent
from tests.servers import ValkeyServer, valkey
from tests.waiting import aeventually

CHAT: dict[str, Any] = {"model": "tiny@1", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def bus_server() -> Iterator[ValkeyServer]:
    with valkey(durable=True) as started:
        yield started


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with valkey(durable=False) as started:
        yield started


@pytest.fixture
def spec(tmp_path: Path) -> DeploymentSpec:
    return echo(LocalStore(tmp_path / "objects"), tmp_path)


def echo(store: ObjectStore, folder: Path) -> DeploymentSpec:
    weights = folder / "tiny" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    model = register(store, "tiny", 1, weights.parent, ArtifactKind.model)
    return DeploymentSpec(model=model, engine="echo", engine_args={"delay_s": 0.02})


@pytest.fixture
async def desk(tmp_path: Path, bus_server: ValkeyServer, server: ValkeyServer) -> AsyncIterator[Desk]:
    bus = ValkeyBus(bus_server.bus_url, "desk")
    desk = Desk(bus, server.unix_url, LocalStore(tmp_path / "objects"))
    await desk.open()
    yield desk
    await desk.close()
    bus.close()


@asynccontextmanager
async def agent_process(tmp_path: Path, bus: ValkeyServer, redis: ValkeyServer) -> AsyncIterator[Process]:
    """`python -m services.inference`, ended in order where the test has not killed it."""
    own = {"HOME": str(tmp_path), "BUS_URL": bus.bus_url, "REDIS_URL": redis.unix_url, "NODE": "n1"}
    settings = {f"LLMOS_{name}": value for name, value in {**own, "HEARTBEAT_S": "0.5"}.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.inference"), env={**os.environ, **settings}
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) in {0, -signal.SIGKILL}


async def test_a_killed_agent_leaves_no_replica_and_a_new_one_starts_it_again(
    tmp_path: Path, desk: Desk, spec: DeploymentSpec, bus_server: ValkeyServer, server: ValkeyServer
) -> None:
    async with agent_process(tmp_path, bus_server, server) as agent:
        desk.want("chat", spec, "r1", "r2")
        first = await desk.until("r1", ReplicaState.ready)
        await desk.until("r2", ReplicaState.ready)
        replicas = psutil.Process(agent.pid).children(recursive=True)
        agent.kill()
        await aeventually(lambda: not any(replica.is_running() for replica in replicas), what="replicas end")
    desk.want("chat", spec, "r1")
    async with agent_process(tmp_path, bus_server, server):
        await aeventually(lambda: (last := desk.watched.last("r1")) and last.boot_id != first.boot_id, 30)
        await desk.until("r1", ReplicaState.ready)
        await desk.gone("r2")
        assert (await desk.answer(await desk.ask("r1", CHAT)))[-1].kind is FrameKind.end
        desk.want("chat", None)
        await desk.gone("r1")
    assert list((tmp_path / "inference" / "n1" / "replicas").iterdir()) == []


async def test_a_second_agent_of_the_same_node_is_refused_with_a_sentence(
    tmp_path: Path, desk: Desk, bus_server: ValkeyServer, server: ValkeyServer
) -> None:
    async with agent_process(tmp_path, bus_server, server):
        await aeventually(lambda: desk.watched.heartbeats, 20)
        env = {**os.environ, "LLMOS_HOME": str(tmp_path), "LLMOS_NODE": "n1"}
        second = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.inference"), env=env, stderr=asyncio.subprocess.PIPE
        )
        _, said = await asyncio.wait_for(second.communicate(), 30)
        assert second.returncode == 2
        assert b"'n1' runs here already" in said


async def test_replicas_serve_while_the_bus_is_away_and_their_last_status_comes_later(
    tmp_path: Path, ground: Ground, server: ValkeyServer
) -> None:
    store = ground.store()
    settings = Settings(home=tmp_path, node="n1", redis_url=server.unix_url)
    desk = Desk(ground.bus(), server.unix_url, store)
    await desk.open()
    async with running_agent(settings, ground.bus(), store):
        desk.want("chat", echo(store, tmp_path), "r1")
        await desk.until("r1", ReplicaState.ready)
        with ground.bus_away():
            held = [await desk.ask("r1", {**CHAT, "max_tokens": 500, "stream": True}) for _ in range(3)]
            await aeventually(lambda: all(desk.seen(request) for request in held))
        await aeventually(lambda: (last := desk.watched.last("r1")) and last.load.running == 3)
        for request in held:
            await desk.cancel("r1", request)
    await desk.close()


async def test_a_flushed_redis_ends_the_work_for_gateways_that_are_gone(
    tmp_path: Path, ground: Ground, server: ValkeyServer
) -> None:
    store = ground.store()
    settings = Settings(home=tmp_path, node="n1", redis_url=server.unix_url, requests_url=ground.requests_url)
    desk = Desk(ground.bus(), server.unix_url, store, requests_url=ground.requests_url)
    await desk.open()
    async with running_agent(settings, ground.bus(), store):
        desk.want("chat", echo(store, tmp_path), "r1")
        await desk.until("r1", ReplicaState.ready)
        request = await desk.ask("r1", {**CHAT, "max_tokens": 100_000, "stream": True})
        await aeventually(lambda: (last := desk.watched.last("r1")) and last.load.running == 1)
        assert desk.seen(request)
        server.client().flushall()
        await aeventually(lambda: (last := desk.watched.last("r1")) and last.load.running == 0)
    await desk.close()
