"""The bus against the tables: what a wiped or restored `registry.state` shows wrongly is published again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from sqlalchemy import Engine

from services.registry.answers import mark_states
from services.registry.tables import truth
from shared.bus.bookmarks import Bookmarks
from shared.bus.port import Bus, BusError, Record
from shared.contracts.artifacts import ArtifactAliasesState, ArtifactVersionState
from shared.contracts.topics import REGISTRY_STATE
from shared.db import AWAY, reading

log = structlog.get_logger("registry.comparison")

EVERY_S = 60.0


class Comparison:
    """Follows the topic; at the start and once a minute it marks for the outbox what differs from the tables."""

    def __init__(self, engine: Engine, bus: Bus, wake: Callable[[], None]) -> None:
        self._engine = engine
        self._bus = bus
        self._wake = wake
        self._shown: dict[str, str | int] = {}
        self._bookmarks = Bookmarks(REGISTRY_STATE)
        self._lock = threading.Lock()
        self._caught_up = threading.Event()
        self._stopping = threading.Event()

    def run(self) -> None:
        following = self._bus.follow(REGISTRY_STATE, self._saw, self._caught_up.set, patience_s=0)
        self._caught_up.wait()
        while not self._stopping.is_set():
            try:
                self.mend()
            except (*AWAY, BusError) as error:
                log.warning("comparison_put_off", error=str(error))
            self._stopping.wait(EVERY_S)
        following.close()

    def stop(self) -> None:
        self._stopping.set()
        self._caught_up.set()

    def mend(self) -> None:
        """What is only on its way is said twice, which does no harm. Raises BusError."""
        with self._lock:
            shown = dict(self._shown)
        with reading(self._engine) as connection:
            wanted = truth(connection)
        differing = {key for key in wanted.keys() | shown.keys() if wanted.get(key) != shown.get(key)}
        if differing:
            with self._engine.begin() as connection:
                mark_states(connection, sorted(differing))
            self._wake()
            log.info("states_published_again", count=len(differing))
        self._bookmarks.compared(self._bus, wanted, shown, datetime.now(UTC))

    def _saw(self, record: Record) -> None:
        with self._lock:
            match record.message:
                case ArtifactVersionState(publication_id=publication_id):
                    self._shown[record.key] = publication_id
                case ArtifactAliasesState(revision=revision):
                    self._shown[record.key] = revision
                case _:
                    self._shown.pop(record.key, None)
