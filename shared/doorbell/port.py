"""Doorbells: "look now" to a node. Lost or doubled they do no harm, since workers also follow the topic."""

from __future__ import annotations

from typing import Protocol


class Doorbell(Protocol):
    def ring(self, node: str, job_id: str, attempt: int) -> None:
        """Never blocks, never raises."""

    def close(self) -> None: ...
