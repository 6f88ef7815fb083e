"""Where the gateway is, and what an answer of it means."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import httpx

from llmos.calls import Json
from llmos.embedded.layout import Layout
from llmos.embedded.running import running
from llmos.errors import NoKey, NotConnected, error_of

DEFAULT_HOME = Path.home() / ".llmos"
DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT = httpx.Timeout(60, connect=5)
RETRIES = 5
"""Of the `openai` client: about fifteen seconds, in which a gateway is up again."""


@dataclass(frozen=True)
class Connection:
    """Where the gateway is and the key for it."""

    url: str
    key: str

    @classmethod
    def find(cls, url: str | None = None, key: str | None = None, home: Path | None = None) -> Connection:
        """What is given; else LLMOS_URL and LLMOS_API_KEY; else what the system in `home` says. Raises NoKey."""
        layout = Layout(home or Path(os.environ.get("LLMOS_HOME") or DEFAULT_HOME))
        if url is None:
            here = running(layout)
            url = os.environ.get("LLMOS_URL") or (here.url if here else DEFAULT_URL)
        key = key or os.environ.get("LLMOS_API_KEY")
        if key is None:
            if not layout.key_file.exists():
                raise NoKey(f"no API key ({layout.key_file} is not there): `llmos up` makes one, or set LLMOS_API_KEY")
            key = layout.key_file.read_text().strip()
        return cls(url.rstrip("/"), key)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def unreachable(self) -> NotConnected:
        return NotConnected(f"nothing answers at {self.url}; is it up? `llmos up` starts it, `llmos status` tells")


def result_of(answer: httpx.Response) -> Json:
    """The JSON of an answer. Raises APIError."""
    if answer.is_error:
        raise error_of(answer)
    result: Json = answer.json() if answer.content else {}
    return result
