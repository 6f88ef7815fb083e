"""The real vLLM behind the queue: a tiny Llama and a LoRA adapter, one start for the whole module."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from shared.bus.memory import MemoryBus
from shared.contracts.artifacts import ArtifactKind, ArtifactPin
from shared.contracts.deployments import DeploymentSpec, ReplicaState
from shared.contracts.inference import Frame, FrameKind
from shared.settings import Settings
from shared.store.local import LocalStore
from tests.integration.inference_node import Desk, register, running_agent, text_of
from tests.servers import valkey
from tests.tiny_model import make_tiny_llama, make_tiny_lora
from tests.waiting import aeventually

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

READY_S = 240
CHAT: dict[str, Any] = {
    "model": "tiny@1",
    "messages": [{"role": "user", "content": "What is a module?"}],
    "temperature": 0,
    "max_tokens": 24,
    "ignore_eos": True,
}
LONG = {**CHAT, "max_tokens": 400, "stream": True}


class Deployed:
    """A ready replica `r1` of the tiny model, and how to ask it."""

    def __init__(self, desk: Desk, model: ArtifactPin) -> None:
        self.desk = desk
        self.model = model

    def spec(self, **fields: Any) -> DeploymentSpec:
        return DeploymentSpec(model=self.model, max_loras=2, max_lora_rank=16, **fields)

    async def ask(self, body: dict[str, Any], **fields: Any) -> list[Frame]:
        return await self.desk.answer(await self.desk.ask("r1", body, **fields), 60)

    async def content(self, body: dict[str, Any]) -> str:
        answer: str = json.loads(text_of(await self.ask(body)))["choices"][0]["message"]["content"]
        return answer

    async def engine_holds(self) -> int:
        """Requests in vLLM's engine by its own metrics, which it renews at every step: so a short one goes first."""
        await self.ask({**CHAT, "max_tokens": 2})
        frames = await self.desk.answer(await self.desk.ask("r1", {}, "/metrics", method="GET"))
        counts = re.findall(
            r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} ([\d.]+)", text_of(frames).decode(), re.MULTILINE
        )
        assert counts
        return int(sum(map(float, counts)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployed]:
    home = tmp_path_factory.mktemp("node")
    store = LocalStore(home / "objects")
    model = register(store, "tiny", 1, make_tiny_llama(home / "made" / "tiny"), ArtifactKind.model)
    bus = MemoryBus()
    with valkey(durable=False) as server:
        settings = Settings(home=home, node="n1", redis_url=server.unix_url)
        desk = Desk(MemoryBus(bus.server), server.unix_url, store)
        await desk.open()
        async with running_agent(settings, bus, store):
            deployed = Deployed(desk, model)
            desk.want("chat", deployed.spec(), "r1")
            await desk.until("r1", ReplicaState.ready, READY_S)
            yield deployed
        await desk.close()


async def test_vllm_is_loaded_with_progress_and_says_what_it_serves(deployed: Deployed) -> None:
    statuses = [status for status in deployed.desk.watched.statuses["r1"] if status]
    percents = [status.percent for status in statuses if status.state is ReplicaState.loading]
    assert percents == sorted(percents, key=lambda percent: percent or 0)
    assert len(set(percents)) >= 4
    assert (statuses[-1].model, statuses[-1].max_model_len) == ("tiny@1", 512)


async def test_an_answer_comes_whole_and_the_same_streamed(deployed: Deployed) -> None:
    whole = await deployed.content(CHAT)
    frames = await deployed.ask({**CHAT, "stream": True, "stream_options": {"include_usage": True}})
    assert [frame.seq for frame in frames] == list(range(len(frames)))
    assert frames[-1].kind is FrameKind.end
    events = [line[6:] for line in text_of(frames).decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]) == whole
    assert chunks[-1]["usage"]["completion_tokens"] == 24


async def test_any_field_of_vllm_passes_through(deployed: Deployed) -> None:
    answer = json.loads(text_of(await deployed.ask({**CHAT, "logprobs": True, "top_logprobs": 2, "min_p": 0.1})))
    assert len(answer["choices"][0]["logprobs"]["content"]) == 24
    twice = json.loads(text_of(await deployed.ask({**CHAT, "n": 2, "temperature": 1, "repetition_penalty": 1.2})))
    assert len(twice["choices"]) == 2
    completion = json.loads(text_of(await deployed.ask({"model": "tiny@1", "prompt": "def"}, path="/v1/completions")))
    assert completion["object"] == "text_completion"


async def test_a_bad_request_gets_vllms_own_4xx(deployed: Deployed, status_of: Callable[[list[Frame]], int]) -> None:
    wrong_value = await deployed.ask({**CHAT, "temperature": -1})
    assert status_of(wrong_value) == 400
    assert "temperature" in json.loads(text_of(wrong_value))["error"]["message"]
    too_long = await deployed.ask({**CHAT, "max_tokens": 100_000})
    assert status_of(too_long) == 400
    unknown = await deployed.ask({**CHAT, "model": "nobody@1"})
    assert status_of(unknown) == 404


async def test_an_adapter_loaded_at_run_time_answers_otherwise(
    deployed: Deployed, tmp_path: Path, status_of: Callable[[list[Frame]], int]
) -> None:
    desk = deployed.desk
    lora = register(desk.store, "style", 1, make_tiny_lora(tmp_path / "lora"), ArtifactKind.adapter)
    wide = register(desk.store, "wide", 1, make_tiny_lora(tmp_path / "wide", rank=64), ArtifactKind.adapter)
    boot = (await desk.until("r1", ReplicaState.ready)).boot_id
    base = await deployed.content(CHAT)
    desk.want("chat", deployed.spec(adapters=[lora, wide]), "r1")
    await aeventually(lambda: (last := desk.watched.last("r1")) and last.adapters == ["style@1"], 20)
    await aeventually(
        lambda: (last := desk.watched.last("r1")) and "rank" in last.failed_adapters.get("wide@1", ""), 20
    )
    assert await deployed.content({**CHAT, "model": "style@1"}) != base
    assert await deployed.content(CHAT) == base
    desk.want("chat", deployed.spec(), "r1")
    await aeventually(lambda: (last := desk.watched.last("r1")) and last.adapters == [], 20)
    assert status_of(await deployed.ask({**CHAT, "model": "style@1"})) == 404
    last = desk.watched.last("r1")
    assert last is not None
    assert last.boot_id == boot


@pytest.mark.parametrize("stream", [True, False])
async def test_a_cancel_stops_the_work_in_the_engine(deployed: Deployed, stream: bool) -> None:
    desk = deployed.desk
    held = [await desk.ask("r1", {**LONG, "stream": stream}) for _ in range(4)]
    await aeventually(lambda: (last := desk.watched.last("r1")) and last.load.running == 4, 20)
    assert await deployed.engine_holds() == 4
    for request in held:
        await desk.cancel("r1", request)
    assert await deployed.engine_holds() == 0


async def test_a_passed_deadline_stops_the_work_with_a_sentence(deployed: Deployed) -> None:
    frames = await deployed.ask(LONG, timeout_ms=100)
    assert frames[-1].kind is FrameKind.failed
    assert "100 ms" in frames[-1].data.decode()


async def test_wrong_engine_arguments_fail_at_once_with_vllms_reason(deployed: Deployed) -> None:
    desk = deployed.desk
    desk.want("chat", None)
    await desk.gone("r1")
    desk.want("misspelt", deployed.spec(engine_args={"max_model_length": 128}), "r2")
    desk.want("too-long", deployed.spec(engine_args={"max_model_len": 100_000}), "r3")
    misspelt = await desk.until("r2", ReplicaState.failed, READY_S)
    assert "--max-model-length" in misspelt.reason
    too_long = await desk.until("r3", ReplicaState.failed, READY_S)
    assert "max_model_len (100000) is greater than" in too_long.reason
    assert misspelt.restarts == too_long.restarts == 0


@pytest.fixture
def status_of() -> Callable[[list[Frame]], int]:
    import msgspec

    def status(frames: list[Frame]) -> int:
        assert frames[0].kind is FrameKind.start
        code: int = msgspec.msgpack.decode(frames[0].data)[0]
        return code

    return status
