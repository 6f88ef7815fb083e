"""Where the gateway is, and what an answer of it means."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import httpx
from dotenv import dotenv_values

from llmos.calls import Json
from llmos.embedded.layout import Layout, default_home
from llmos.embedded.running import running
from llmos.errors import LLMOSError, NoAddress, NoKey, NotConnected, error_of

EXAMPLE_URL = "http://127.0.0.1:8000"
TIMEOUT = httpx.Timeout(60, connect=5)
AGAIN_S = 0.2
"""Before a stream that ended is opened again."""
RETRIES = 5
"""Of the `openai` client: about fifteen seconds, in which a gateway is up again."""


@dataclass(frozen=True)
class Connection:
    """Where the gateway is and the key for it."""

    url: str
    key: str

    @classmethod
    def find(cls, url: str | None = None, key: str | None = None, home: Path | None = None) -> Connection:
        """What is given; else LLMOS_URL and LLMOS_API_KEY; else what the system in `home` says.

        The key for a given address may also lie in `.env` here, where `docker compose` has it from.
        Raises NotConnected where nothing runs, NoAddress and NoKey.
        """
        layout = Layout(home or default_home())
        key = key or os.environ.get("LLMOS_API_KEY")
        if url := url or os.environ.get("LLMOS_URL"):
            url = _checked(url)
            key = key or dotenv_values(".env").get("LLMOS_API_KEY")
        elif here := running(layout):
            url = here.url
        else:  # whatever listens on the usual port is another's
            raise NotConnected(f"nothing runs on {layout.home}: `llmos up` starts it, or name a gateway with --url")
        key = key or _key_in(layout.key_file)
        if not (key.isascii() and key.isprintable()):
            raise NoKey("the API key holds characters that are in no key; copy it again")
        return cls(url, key)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def broken(self, error: httpx.TransportError) -> NotConnected:
        """What a person is told of a call that got no answer."""
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return NotConnected(f"nothing answers at {self.url}; is it up? `llmos up` starts it")
        if isinstance(error, httpx.TimeoutException):
            return NotConnected(f"{self.url} did not answer in time; try again")
        return NotConnected(f"the connection to {self.url} broke off ({error}); try again")


def result_of(answer: httpx.Response) -> Json:
    """The JSON of an answer. Raises APIError."""
    if answer.is_error:
        raise error_of(answer)
    try:
        result: Json = answer.json() if answer.content else {}
    except ValueError as error:
        raise LLMOSError(f"what answers at {answer.url} is no LLM OS gateway: its answer is not JSON") from error
    return result


def missing_of(answer: httpx.Response) -> dict[str, str]:
    """What an answer of /readyz names as missing, each with its reason. Raises LLMOSError."""
    if answer.status_code not in (200, 503):
        raise error_of(answer)
    try:
        return dict(answer.json()["missing"])
    except (ValueError, KeyError, TypeError) as error:
        raise LLMOSError(f"what answers at {answer.url} does not say what it lacks: it is no LLM OS gateway") from error


def _key_in(file: Path) -> str:
    try:
        key = file.read_text().strip()
    except FileNotFoundError:
        key = ""
    if not key:
        raise NoKey(f"no API key ({file} is not there or empty): `llmos up` makes one, or set LLMOS_API_KEY")
    return key


def _checked(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise NoAddress(f"{url!r} is no address of a gateway: write it like {EXAMPLE_URL}")
    return url.rstrip("/")
