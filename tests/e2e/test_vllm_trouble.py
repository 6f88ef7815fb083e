"""The real vLLM with models and arguments that it cannot serve, and an engine that dies."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from shared.bus.memory import MemoryBus
from shared.contracts.artifacts import ArtifactKind, ArtifactPin
from shared.contracts.deployments import DeploymentSpec, ReplicaState
from shared.contracts.inference import FrameKind, Refusal
from shared.settings import Settings
from shared.store.local import LocalStore
from tests.integration.inference_node import Desk, register, running_agent, text_of
from tests.servers import valkey
from tests.tiny_model import make_tiny_llama
from tests.waiting import aeventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

READY_S = 240


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """A desk at a node whose agent gives a replica up at its second crash."""
    bus = MemoryBus()
    store = LocalStore(tmp_path / "objects")
    with valkey(durable=False) as server:
        settings = Settings(home=tmp_path, node="n1", redis_url=server.unix_url, replica_max_crashes=2)
        desk = Desk(MemoryBus(bus.server), server.unix_url, store)
        await desk.open()
        async with running_agent(settings, bus, store):
            yield desk
        await desk.close()


def model(desk: Desk, folder: Path, **shape: Any) -> ArtifactPin:
    return register(desk.store, "tiny", 1, make_tiny_llama(folder, **shape), ArtifactKind.model)


async def test_a_model_that_kills_the_engine_with_its_first_token_is_never_ready(desk: Desk, tmp_path: Path) -> None:
    """A head of 16 loads, but vLLM's attention on CPU has no kernel for it."""
    desk.want("chat", DeploymentSpec(model=model(desk, tmp_path / "made", hidden=32)), "r1")
    failed = await desk.until("r1", ReplicaState.failed, READY_S)
    assert "head_dim=16" in failed.reason
    assert failed.restarts == 0
    assert ReplicaState.ready not in desk.watched.states("r1")


async def test_a_dead_engine_refuses_with_its_reason_and_fails_when_it_dies_again(desk: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    pin = model(desk, folder)
    desk.want("chat", DeploymentSpec(model=pin, max_loras=0), "r1")
    first = await desk.until("r1", ReplicaState.ready, READY_S)
    engine = engine_process()
    engine.send_signal(signal.SIGSTOP)
    held = await desk.ask("r1", {"model": "tiny@1", "prompt": "def"}, path="/v1/completions")
    await aeventually(lambda: (last := desk.watched.last("r1")) and last.load.running, 20)
    engine.send_signal(signal.SIGKILL)
    refused = (await desk.answer(held))[0]
    assert refused.kind is FrameKind.refused
    refusal = msgspec.msgpack.decode(refused.data, type=Refusal)
    assert refusal.broken
    assert "killed" in refusal.reason
    await aeventually(lambda: (last := desk.watched.last("r1")) and last.boot_id != first.boot_id, 30)
    again = await desk.until("r1", ReplicaState.ready, READY_S)
    assert "killed" in again.reason
    engine_process().send_signal(signal.SIGKILL)
    failed = await desk.until("r1", ReplicaState.failed, READY_S)
    assert "vLLM's engine has stopped" in failed.reason


async def test_a_refused_value_is_named_with_its_reason(desk: Desk, tmp_path: Path) -> None:
    pin = model(desk, tmp_path / "made")
    desk.want("chat", DeploymentSpec(model=pin, engine_args={"max_model_len": -5}), "r1")
    failed = await desk.until("r1", ReplicaState.failed, READY_S)
    assert "max_model_len: " in failed.reason
    assert "-1" in failed.reason


async def test_a_chat_with_a_model_that_has_no_template_is_told_of_completions(desk: Desk, tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "made")
    (folder / "chat_template.jinja").unlink()
    pin = register(desk.store, "tiny", 1, folder, ArtifactKind.model)
    desk.want("chat", DeploymentSpec(model=pin, max_loras=0), "r1")
    await desk.until("r1", ReplicaState.ready, READY_S)
    chat = {"model": "tiny@1", "messages": [{"role": "user", "content": "hi"}]}
    frames = await desk.answer(await desk.ask("r1", chat))
    assert msgspec.msgpack.decode(frames[0].data)[0] == 400
    message = json.loads(text_of(frames))["error"]["message"]
    assert "no chat template" in message
    assert "/v1/completions" in message
    assert "transformers" not in message


def engine_process() -> psutil.Process:
    """vLLM's engine: the replica's one child that computes."""
    replicas = [child for child in psutil.Process().children(recursive=True) if _is_replica(child)]
    return max((child for replica in replicas for child in replica.children()), key=lambda each: each.memory_info().rss)


def _is_replica(process: psutil.Process) -> bool:
    return process.pid != os.getpid() and process.cmdline()[:1] == ["llmos: replica r1"]
