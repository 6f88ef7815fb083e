"""Doorbells in memory: they remember who was rung."""

from __future__ import annotations


class MemoryDoorbell:
    """`rung` holds `(node, job_id, attempt)`, oldest first."""

    def __init__(self) -> None:
        self.rung: list[tuple[str, str, int]] = []

    def ring(self, node: str, job_id: str, attempt: int) -> None:
        self.rung.append((node, job_id, attempt))

    def close(self) -> None:
        """Nothing to let go of."""
