"""What the bus shows otherwise than the tables is published again, while the registry runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, select

from services.registry.comparison import Comparison
from services.registry.domain import Artifact
from services.registry.tables import insert_version, outbox_states, save_artifact
from shared.bus.memory import MemoryBus
from shared.contracts.artifacts import ArtifactAliasesState, ArtifactKind, ArtifactVersionState, Manifest
from shared.contracts.topics import REGISTRY_STATE
from shared.db import open_database
from tests.databases import NewDatabase
from tests.waiting import eventually

STATE = ArtifactVersionState(
    name="base",
    version=1,
    kind=ArtifactKind.model,
    manifest_key="m",
    manifest=Manifest(files=[]),
    publication_id="p",
    created_at=datetime.now(UTC),
)


@pytest.fixture
def engine(new_database: NewDatabase) -> Engine:
    engine = open_database(new_database("registry"))
    with engine.begin() as connection:
        artifact = Artifact("default", "base", ArtifactKind.model, last_version=1)
        save_artifact(connection, artifact)
        insert_version(connection, STATE)
        save_artifact(connection, artifact.with_version(1, ArtifactKind.model, []))
    return engine


@pytest.fixture
def bus() -> Iterator[MemoryBus]:
    bus = MemoryBus()
    yield bus
    bus.close()


def marked(engine: Engine) -> set[str]:
    with engine.begin() as connection:
        return set(connection.scalars(select(outbox_states.c.key)))


def test_what_a_wiped_topic_lost_is_marked_while_the_registry_runs(engine: Engine, bus: MemoryBus) -> None:
    bus.publish(REGISTRY_STATE, "default/base@1", STATE).result()
    woken = threading.Event()
    comparison = Comparison(engine, bus, woken.set)
    thread = threading.Thread(target=comparison.run)
    thread.start()
    try:
        eventually(lambda: marked(engine) == {"default/base"}, what="the mark of the aliases, which were never there")
        bus.publish(REGISTRY_STATE, "default/base@1", None).result()

        def mended() -> bool:
            comparison.mend()
            return marked(engine) == {"default/base", "default/base@1"}

        eventually(mended)
        assert woken.is_set()
    finally:
        comparison.stop()
        thread.join()


def test_an_older_state_that_was_put_over_a_newer_one_is_marked(engine: Engine, bus: MemoryBus) -> None:
    older = ArtifactAliasesState(name="base", aliases={}, revision=0)
    for key, state in {"default/base@1": STATE, "default/base": older, "default/gone@1": STATE}.items():
        bus.publish(REGISTRY_STATE, key, state).result()
    comparison = Comparison(engine, bus, lambda: None)
    thread = threading.Thread(target=comparison.run)
    thread.start()
    try:
        eventually(lambda: marked(engine) == {"default/base", "default/gone@1"})
    finally:
        comparison.stop()
        thread.join()
