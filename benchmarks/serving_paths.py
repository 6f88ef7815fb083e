"""The two ways to the same model: vLLM's own server, and gateway → queue → replica. Real processes, both."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path

import aiohttp

from benchmarks.serving_load import LoadFailed, Target, measure
from services.inference.control import Phase, ReplicaSpec, Report
from services.inference.engines.arguments import command_line, processor_has_bf16
from services.inference.engines.vllm import environment as engine_environment
from services.inference.process import Launcher
from shared import requests
from shared.bus.port import Bus
from shared.bus.valkey import ValkeyBus
from shared.contracts import topics
from shared.contracts.artifacts import ArtifactKind, ArtifactPin
from shared.contracts.deployments import (
    DeploymentSpec,
    DesiredDeployment,
    Load,
    ReplicaPlace,
    ReplicaState,
    ReplicaStatus,
    deployment_key,
)
from shared.processes import die_with_parent
from shared.settings import Settings
from tests.kafka_server import mortal_kafka
from tests.ports import free_port
from tests.servers import valkey

REF = "bench@1"
READY_S = 300
STOP_S = 20
KEY = "sk-llmos-benchmark"
GATEWAY = ["-m", "services.gateway"]


def replica_spec(model: Path, cache: Path) -> ReplicaSpec:
    """What both sides run: the same arguments, the same environment."""
    return ReplicaSpec(
        replica_id="bench-0",
        served_name=REF,
        model_folder=str(model),
        engine="vllm",
        engine_args={"max_model_len": 512},
        max_loras=0,
        max_lora_rank=8,
        max_queue=256,
        threads=1,
        devices=[],
        restarts=0,
        cache_folder=str(cache),
    )


@asynccontextmanager
async def direct(spec: ReplicaSpec, home: Path) -> AsyncIterator[Target]:
    """vLLM's own HTTP server, as `vllm serve` runs it, without its access log."""
    port = free_port()
    argv = command_line(spec, on_cpu=True, has_bf16=processor_has_bf16())
    argv += ["--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"]
    env = {**os.environ, **engine_environment(spec, on_cpu=True)}
    async with process(["-m", "vllm.entrypoints.openai.api_server", *argv], env, home / "direct") as server:
        target = Target(f"http://127.0.0.1:{port}", REF)
        await until_it_answers(target, lambda: server.returncode is not None, home)
        yield target


@asynccontextmanager
async def queued(spec: ReplicaSpec, home: Path, carrier: str = "valkey") -> AsyncIterator[Target]:
    """A gateway and a replica; the states that scheduler and agent publish come from here.

    Requests go over the volatile Valkey, or over a Kafka; answers over the Valkey.
    """
    home = home / carrier
    home.mkdir()
    async with AsyncExitStack() as stack:
        durable = stack.enter_context(valkey(durable=True))
        volatile = stack.enter_context(valkey(durable=False))
        requests_url = volatile.unix_url
        if carrier == "kafka":
            requests_url = stack.enter_context(mortal_kafka()).url
            requests.prepare(requests_url)
        settings = Settings(
            home=home,
            bus_url=durable.bus_url,
            redis_url=volatile.unix_url,
            requests_url=requests_url,
            node="bench",
            api_key=KEY,
        )
        bus = ValkeyBus(settings.bus_url, "benchmark")
        stack.callback(bus.close)
        target = Target(f"http://127.0.0.1:{(port := free_port())}", REF, KEY)
        command = ["-m", "services.gateway"]
        gateway = await stack.enter_async_context(
            process(command, gateway_environment(settings, port), home / "gateway")
        )
        replica = await Launcher(settings, home)(spec)
        stack.push_async_callback(replica.kill)
        reporting = asyncio.create_task(publish_states(bus, spec, replica.reports()))
        stack.callback(reporting.cancel)
        await until_it_answers(target, lambda: gateway.returncode is not None or reporting.done(), home)
        yield target


def gateway_environment(settings: Settings, port: int) -> dict[str, str]:
    """`LLMOS_*` as an operator would set it."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("LLMOS_")}
    ours = {
        name: str(getattr(settings, name))
        for name in ("home", "bus_url", "redis_url", "requests_url", "node", "api_key")
    }
    ours |= {"port": str(port), "log_level": "warning"}
    return {**others, **{f"LLMOS_{name.upper()}": value for name, value in ours.items()}}


async def publish_states(bus: Bus, spec: ReplicaSpec, reports: AsyncIterator[Report]) -> None:
    """The deployment as its scheduler wants it, and the replica as its agent reports it."""
    name, _, version = REF.partition("@")
    pin = ArtifactPin(name=name, version=int(version), kind=ArtifactKind.model, manifest_key="none")
    places = [ReplicaPlace(replica_id=spec.replica_id, node="bench")]
    desired = DesiredDeployment(name=name, version=1, spec=DeploymentSpec(model=pin), replicas=places)
    bus.publish(topics.DEPLOYMENTS_DESIRED, deployment_key(desired.tenant, name), desired)
    seq = count()
    async for report in reports:
        status = ReplicaStatus(
            replica_id=spec.replica_id,
            deployment=name,
            node="bench",
            state=ReplicaState.ready if report.phase is Phase.ready else ReplicaState.loading,
            reason=report.reason,
            model=REF,
            load=Load(running=report.running, waiting=report.waiting),
            boot_id="one",
            seq=next(seq),
        )
        bus.publish(topics.DEPLOYMENTS_STATUS, spec.replica_id, status)


@asynccontextmanager
async def process(arguments: list[str], environment: dict[str, str], log: Path) -> AsyncIterator[Process]:
    """`python …` in a group of its own, ended with all that it started, and with this process however it ends."""
    with log.with_suffix(".log").open("wb") as output:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, *arguments),
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(child.wait(), STOP_S)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


async def until_it_answers(target: Target, dead: Callable[[], bool], logs: Path) -> None:
    """Ask until there is an answer. Raises RuntimeError where a process has ended, or after READY_S."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and not dead():
        with suppress(aiohttp.ClientConnectionError, LoadFailed):
            await measure(target, streams=1, requests=1, tokens=2)
            return
        await asyncio.sleep(0.5)
    raise RuntimeError(f"{target.url} does not answer; its logs are in {logs}")
