"""Composition root of a replica's process."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import structlog
import uvloop
from setproctitle import setproctitle

from services.inference.control import MAX_REASON, Phase, ReplicaSpec, Report, Wishes, decode_spec
from services.inference.engines import Engine, EngineRefused, EngineStopped, opener
from services.inference.replica.adapters import Adapters
from services.inference.replica.line import Line
from services.inference.replica.server import Server
from services.inference.replica.trial import try_out
from shared import replies, requests
from shared.processes import die_with_parent
from shared.settings import Settings, SettingsError, die, load_settings
from shared.telemetry import setup_telemetry

log = structlog.get_logger(__name__)

REPORT_S = 2.0


def main() -> None:
    """Run the replica that the spec file describes, until the agent says drain or is gone."""
    spec_file, descriptor, agent_pid = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    die_with_parent(agent_pid)
    try:
        settings = load_settings()
        setup_telemetry(settings, "replica")
    except SettingsError as error:
        die(error)
    spec = decode_spec(spec_file.read_bytes())
    setproctitle(f"llmos: replica {spec.replica_id}")
    line = Line(descriptor)
    try:
        uvloop.run(serve(spec, settings, line))
    except EngineRefused as error:
        line.report(Report(Phase.broken, reason=str(error)[:MAX_REASON]))
    except EngineStopped as error:
        line.report(Report(Phase.crashed, reason=str(error)[:MAX_REASON]))


async def serve(spec: ReplicaSpec, settings: Settings, line: Line) -> None:
    """Open the engine, try it out, then serve the inbox until drained. Raises EngineRefused or EngineStopped."""

    def on_phase(doing: str, percent: float) -> None:
        log.info("replica_starting", doing=doing, percent=percent)
        line.report(Report(Phase.loading, percent=percent))

    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(opener(spec.engine)(spec, on_phase))
        on_phase("answering a first request", 98)
        await try_out(engine)
        answers = replies.connect(settings.redis_url)
        stack.push_async_callback(answers.close)
        questions = requests.connect(settings.effective_requests_url)
        stack.push_async_callback(questions.close)
        server = Server(spec.replica_id, engine, answers, spec.max_queue)
        stack.push_async_callback(server.close)
        items = await stack.enter_async_context(questions.inbox(spec.replica_id))
        await _Replica(engine, server, line).run(server.serve(items))


class _Replica:
    """A ready replica: its server, its adapters, and what it tells the agent."""

    def __init__(self, engine: Engine, server: Server, line: Line) -> None:
        self._engine = engine
        self._server = server
        self._line = line
        self._adapters = Adapters(engine, self._report)
        self._drain = asyncio.Event()

    async def run(self, serving: object) -> None:
        """Serve, report and load adapters until drained. Raises EngineStopped, or whatever breaks any of it."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._drain.set)
        loop.add_signal_handler(signal.SIGINT, self._drain.set)
        self._line.listen(self._wished)
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(serving),  # type: ignore[arg-type]
                tasks.create_task(self._adapters.run()),
                tasks.create_task(self._keep_reporting()),
            ]
            await self._drain.wait()
            if not self._engine.problem():
                await self._server.drain()
            for task in background:
                task.cancel()
        if problem := self._engine.problem():
            raise EngineStopped(problem)

    def _wished(self, wishes: Wishes) -> None:
        self._adapters.want(wishes.adapters)
        if wishes.drain:
            self._drain.set()

    async def _keep_reporting(self) -> None:
        """Until the engine breaks down: that ends the replica."""
        while not self._engine.problem():
            self._report()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._server.broke.wait(), REPORT_S)
        self._drain.set()

    def _report(self) -> None:
        running, waiting = self._server.load
        self._line.report(
            Report(
                Phase.ready,
                max_model_len=self._engine.max_model_len,
                adapters=list(self._adapters.loaded),
                failed_adapters=dict(self._adapters.failed),
                running=running,
                waiting=waiting,
            )
        )
