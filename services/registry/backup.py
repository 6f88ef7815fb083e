"""What only the registry knows about its tables, for backups. `shared.backup` calls it."""

from __future__ import annotations

import time
from collections.abc import Iterator

from sqlalchemy import Connection, select, update

from services.registry.tables import answers, inbox, versions
from shared.backup.system import Restored
from shared.contracts.artifacts import ArtifactVersionState


def artifacts(sql: Connection) -> Iterator[ArtifactVersionState]:
    """Every version that is not deleted."""
    for document in sql.scalars(select(versions.c.document).where(~versions.c.deleted)):
        yield ArtifactVersionState.model_validate_json(document)


def settle(sql: Connection, restored: Restored) -> None:
    """Answers are kept anew for as long as their commands may come again: senders repeat what was on the bus."""
    sql.execute(update(answers).values(at=time.time()))
    restored.handled.update(sql.scalars(select(answers.c.id)))
    restored.handled.update(sql.scalars(select(inbox.c.id)))
