"""The system that a command talks to: --url, --key and --home, or what runs on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from llmos.client import LLMOS
from llmos.embedded.layout import Layout


@dataclass(frozen=True)
class Session:
    """The options in front of the command."""

    url: str | None
    key: str | None
    home: Path

    def client(self) -> LLMOS:
        return LLMOS(self.url, self.key, self.home)

    @property
    def layout(self) -> Layout:
        return Layout(self.home)


def session_of(context: typer.Context) -> Session:
    session = context.find_object(Session)
    assert session is not None  # the root callback made it
    return session
