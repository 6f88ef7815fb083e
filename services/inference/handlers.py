"""One function a message: from the bus's thread into the agent's event loop."""

from __future__ import annotations

import asyncio

from services.inference.agent import Agent
from shared.bus.port import Record
from shared.contracts.deployments import DesiredDeployment


class Handlers:
    """What the agent does with the records of `deployments.desired`."""

    def __init__(self, agent: Agent, loop: asyncio.AbstractEventLoop) -> None:
        self._agent = agent
        self._loop = loop

    def on_desired(self, record: Record) -> None:
        if record.message is None or isinstance(record.message, DesiredDeployment):
            self._loop.call_soon_threadsafe(self._agent.desired, record.key, record.message)

    def on_caught_up(self) -> None:
        self._loop.call_soon_threadsafe(self._agent.caught_up)
