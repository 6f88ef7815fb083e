"""Engines: what turns a request into an answer. Each is an ASGI application with a few words about itself.

vLLM is the first; `echo` is a few lines that speak the same API, for tests and load.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

from services.inference.control import ReplicaSpec

AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]
AsgiApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
OnPhase = Callable[[str, float], None]
"""Told what is being done now and how many percent of the start lie behind."""


class EngineRefused(Exception):
    """The engine can never work with this model and these arguments; the message is a sentence for a person."""


class EngineStopped(Exception):
    """The engine has broken down and serves no more; the message is its reason. Another start may go better."""


class AdapterRefused(Exception):
    """The engine cannot load or unload this adapter; the message says why."""


class Engine(Protocol):
    @property
    def app(self) -> AsgiApp:
        """Answers OpenAI's HTTP API; must stop working for a request that receives `http.disconnect`."""

    @property
    def max_model_len(self) -> int | None: ...

    @property
    def slots(self) -> int:
        """Requests that it works on at once; more wait inside it."""

    @property
    def trial(self) -> tuple[str, dict[str, Any]] | None:
        """The path and body of the smallest request that makes it work; None where it knows of none."""

    def problem(self) -> str:
        """Why it can serve no more; empty while it is well. Asked at every piece of an answer, so it is quick."""

    async def load_adapter(self, ref: str, folder: Path) -> None:
        """From now on, requests whose model is `ref` are answered with it. Raises AdapterRefused."""

    async def unload_adapter(self, ref: str) -> None:
        """Raises AdapterRefused."""


OpenEngine = Callable[[ReplicaSpec, OnPhase], AbstractAsyncContextManager[Engine]]


def opener(name: str) -> OpenEngine:
    """How to open the engine of that name. Nothing heavy is imported for the others. Raises EngineRefused."""
    if name == "vllm":
        from services.inference.engines.vllm import open_vllm

        return open_vllm
    if name == "echo":
        from services.inference.engines.echo import open_echo

        return open_echo
    raise EngineRefused(f"engine {name!r} is not known here; use 'vllm'")
