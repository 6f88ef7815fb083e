"""A tiny engine for tests and load: no torch, OpenAI's words, and failures on demand.

`engine_args` choose how it behaves, see EchoArgs. An answer is the model's name and then numbered tokens, so that it
shows who answered and whether a piece is missing.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from services.inference.control import ReplicaSpec
from services.inference.engines import AdapterRefused, AsgiApp, EngineRefused, OnPhase, Receive, Send

CRASH_STATUS = 70


class EchoArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the echo engine behaves. `*_while` and `*_if` name a file: it does so as long as that is there."""

    tokens: int = 16
    """Tokens of an answer that asks for no `max_tokens`."""
    delay_s: float = 0.0
    """Pause before every token."""
    start_s: float = 0.0
    slots: int = 256
    max_model_len: int = 4096
    refuse: str = ""
    """Refuse to start, with this sentence."""
    crash_at_start: str = ""
    """End the process while starting, with this as the last line said."""
    crash_while: str = ""
    hang_at_start: bool = False
    crash_on: str = ""
    """End the process when a request's body holds this."""
    hang_on: str = ""
    """Never answer such a request."""
    break_on: str = ""
    """Its engine stops at such a request, as one in a process of its own does: every answer under way fails."""
    fail_on: str = ""
    """Raise in the application for such a request."""
    refuse_adapters: list[str] = []


@asynccontextmanager
async def open_echo(spec: ReplicaSpec, on_phase: OnPhase) -> AsyncIterator[EchoEngine]:
    """The echo engine of this specification. Raises EngineRefused for an argument that it does not have."""
    try:
        args = msgspec.convert(spec.engine_args, EchoArgs)
    except msgspec.ValidationError as error:
        raise EngineRefused(f"the echo engine refuses the engine_args: {error}") from error
    on_phase("starting", 10)
    if args.refuse:
        raise EngineRefused(args.refuse)
    if args.crash_at_start or _exists(args.crash_while):
        crash(f"ValueError: {args.crash_at_start or 'asked to crash'}")
    await asyncio.sleep(3600 if args.hang_at_start else args.start_s)
    yield EchoEngine(spec.served_name, args)


def _exists(path: str) -> bool:
    return bool(path) and os.path.exists(path)


def crash(last_words: str) -> None:
    """End the process as a broken engine would: something said, and no goodbye."""
    print(last_words, flush=True)
    os._exit(CRASH_STATUS)


class EchoEngine:
    """Answers `/v1/chat/completions` and `/v1/completions` for the base model and the loaded adapters."""

    def __init__(self, served_name: str, args: EchoArgs) -> None:
        self.app: AsgiApp = self._answer
        self.max_model_len: int | None = args.max_model_len
        self.slots = args.slots
        self.models = {served_name}
        self.working = 0
        """Requests it works on now."""
        self.trial = "/v1/completions", {"model": served_name, "prompt": "trial", "max_tokens": 1}
        self._args = args
        self._stopped = asyncio.Event()

    def problem(self) -> str:
        return "the echo engine was asked to break" if self._stopped.is_set() else ""

    async def load_adapter(self, ref: str, folder: Path) -> None:
        if ref in self._args.refuse_adapters or not _exists(str(folder)):
            raise AdapterRefused(f"{ref} cannot be loaded from {folder}")
        self.models.add(ref)

    async def unload_adapter(self, ref: str) -> None:
        self.models.discard(ref)

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        work = asyncio.create_task(self._work(scope["path"], body, send))
        gone = asyncio.create_task(_disconnected(receive))
        stopped = asyncio.create_task(self._stopped.wait())
        self.working += 1
        try:
            await asyncio.wait({work, gone, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            elif stopped.done():
                await _send_json(send, 500, _error("the echo engine is dead", None))
        finally:
            self.working -= 1
            for task in (work, gone, stopped):
                task.cancel()

    async def _work(self, path: str, body: bytes, send: Send) -> None:
        await self._misbehave(body.decode())
        try:
            asked = json.loads(body)
        except json.JSONDecodeError as error:
            return await _send_json(send, 400, _error(f"the body is no JSON: {error}", None))
        if asked.get("model") not in self.models:
            return await _send_json(send, 404, _error(f"The model `{asked.get('model')}` does not exist.", "model"))
        if path not in {"/v1/chat/completions", "/v1/completions"}:
            return await _send_json(send, 404, _error(f"no such path: {path}", None))
        chat = path == "/v1/chat/completions"
        count = asked.get("max_tokens") or self._args.tokens
        if asked.get("stream"):
            return await self._stream(asked["model"], count, send, chat=chat)
        text = "".join([piece async for piece in self._tokens(asked["model"], count)])
        choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        usage = {"completion_tokens": count, "prompt_tokens": 0, "total_tokens": count}
        return await _send_json(send, 200, _envelope(asked["model"], {**choice, "finish_reason": "stop"}, usage=usage))

    async def _stream(self, model: str, count: int, send: Send, *, chat: bool) -> None:
        await send(_start(200, b"text/event-stream"))
        async for piece in self._tokens(model, count):
            choice: dict[str, Any] = {"delta": {"content": piece}} if chat else {"text": piece}
            event = b"data: " + json.dumps(_envelope(model, choice)).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    async def _tokens(self, model: str, count: int) -> AsyncIterator[str]:
        for number in range(count):
            await asyncio.sleep(self._args.delay_s)
            yield f"{model}: 0" if number == 0 else f" {number}"

    async def _misbehave(self, body: str) -> None:
        if self._args.crash_on and self._args.crash_on in body:
            crash("RuntimeError: asked to crash by a request")
        if self._args.break_on and self._args.break_on in body:
            self._stopped.set()
            await asyncio.Event().wait()
        if self._args.hang_on and self._args.hang_on in body:
            await asyncio.Event().wait()
        if self._args.fail_on and self._args.fail_on in body:
            raise RuntimeError("asked to fail by a request")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _envelope(model: str, choice: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "echo", "object": "echo", "created": 0, "model": model, "choices": [{"index": 0, **choice}], **more}


def _error(message: str, param: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}}


def _start(status: int, content_type: bytes) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]}


async def _send_json(send: Send, status: int, content: dict[str, Any]) -> None:
    await send(_start(status, b"application/json"))
    await send({"type": "http.response.body", "body": json.dumps(content).encode(), "more_body": False})
