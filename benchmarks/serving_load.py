"""A load client for `/v1/completions`: so many streams at once, tokens per second and first-token times."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from itertools import count

import aiohttp

PROMPT = "In the beginning there was a queue, number {number}, and"
_numbers = count()


class LoadFailed(Exception):
    """An answer was not what was asked for; a figure made of it would be a lie."""


@dataclass(frozen=True)
class Target:
    """A server, and how it wants to be asked."""

    url: str
    model: str
    key: str = "none"


@dataclass(frozen=True)
class Load:
    """What a run of `requests` streams came to."""

    tokens_per_s: float
    first_token_ms: list[float]

    def percentile(self, part: float) -> float:
        ordered = sorted(self.first_token_ms)
        return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


async def measure(target: Target, streams: int, requests: int, tokens: int) -> Load:
    """Keep `streams` requests running until `requests` are done; each answer has half to one and a half times `tokens`.

    The lengths are the same for every target. Answers of one length would end, and the next begin, all at once for
    ever: that measures a convoy, not a load.
    """
    lengths = random.Random(streams)
    headers = {"Authorization": f"Bearer {target.key}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(target.url, connector=connector, headers=headers) as session:
        wanted = [lengths.randint(tokens // 2, tokens + tokens // 2) for _ in range(requests)]
        todo = iter(wanted)
        firsts: list[float] = []

        async def keep_asking() -> None:
            firsts.extend([await _ask(session, target, length) for length in todo])

        began = time.perf_counter()
        await asyncio.gather(*(keep_asking() for _ in range(streams)))
        return Load(sum(wanted) / (time.perf_counter() - began), firsts)


async def _ask(session: aiohttp.ClientSession, target: Target, tokens: int) -> float:
    """One stream, read to its end; milliseconds to its first bytes. Raises LoadFailed."""
    question = {
        "model": target.model,
        "prompt": PROMPT.format(number=next(_numbers)),
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    first_ms = 0.0
    tail = b""
    began = time.perf_counter()
    async with session.post("/v1/completions", json=question) as answer:
        if answer.status != 200:
            raise LoadFailed(f"{target.url} answered {answer.status}: {await answer.text()}")
        async for piece in answer.content.iter_any():
            first_ms = first_ms or (time.perf_counter() - began) * 1000
            tail = (tail + piece)[-600:]
    if b'"completion_tokens":%d' % tokens not in tail:
        raise LoadFailed(f"{target.url} did not answer {tokens} tokens: …{tail.decode(errors='replace')}")
    return first_ms
