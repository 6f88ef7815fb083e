"""A first request, before a replica counts as ready: some models load well, and kill the engine with one token."""

from __future__ import annotations

import json

import msgspec
import structlog

from services.inference.engines import Engine, EngineRefused
from services.inference.replica.call import Call
from shared.contracts.inference import Frame, FrameKind, Request

log = structlog.get_logger(__name__)


async def try_out(engine: Engine) -> None:
    """Have the engine answer its smallest request. Raises EngineRefused where that breaks it.

    Whatever else it answers is no reason not to serve: there are models that take no plain text.
    """
    if engine.trial is None:
        return
    path, body = engine.trial
    frames: list[Frame] = []
    request = Request(id="trial", attempt=1, path=path, body=json.dumps(body).encode(), reply_to="")
    await Call(request, engine, lambda frame, _: frames.append(frame), "").run()
    if problem := engine.problem():
        raise EngineRefused(f"it cannot answer with this model: {problem}")
    if said := _refusal(frames):
        log.warning("trial_not_answered", said=said)


def _refusal(frames: list[Frame]) -> str:
    """What was said instead of an answer; empty where it was one."""
    first = frames[0]
    if first.kind is FrameKind.start and msgspec.msgpack.decode(first.data)[0] < 400:
        return ""
    return frames[-1].data[:500].decode(errors="replace")
