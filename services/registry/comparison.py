"""Once at every start: what a wiped or restored `registry.state` shows wrongly is published again."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog
from sqlalchemy import Engine

from services.registry.answers import mark_states
from services.registry.tables import truth
from shared.bus.port import Bus, Record
from shared.contracts.artifacts import ArtifactAliasesState, ArtifactVersionState
from shared.contracts.topics import REGISTRY_STATE

log = structlog.get_logger("registry.comparison")


class Comparison:
    """Reads the topic to its end, and marks for the outbox what differs from the tables."""

    def __init__(self, engine: Engine, bus: Bus, wake: Callable[[], None]) -> None:
        self._engine = engine
        self._bus = bus
        self._wake = wake
        self._shown: dict[str, str | int] = {}
        self._caught_up = threading.Event()
        self._stopped = False

    def run(self) -> None:
        following = self._bus.follow(REGISTRY_STATE, self._saw, self._caught_up.set)
        self._caught_up.wait()
        following.close()
        if not self._stopped:
            self.mend()

    def stop(self) -> None:
        self._stopped = True
        self._caught_up.set()

    def mend(self) -> None:
        with self._engine.begin() as connection:
            wanted = truth(connection)
            differing = {key for key in wanted.keys() | self._shown.keys() if wanted.get(key) != self._shown.get(key)}
            mark_states(connection, sorted(differing))
        if differing:
            self._wake()
            log.info("states_published_again", count=len(differing))

    def _saw(self, record: Record) -> None:
        match record.message:
            case ArtifactVersionState(publication_id=publication_id):
                self._shown[record.key] = publication_id
            case ArtifactAliasesState(revision=revision):
                self._shown[record.key] = revision
            case _:
                self._shown.pop(record.key, None)
